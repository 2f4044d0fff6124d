"""What was measured, as a table and as JSON."""
import json
import math
import statistics

ORDER = ["pleach", "tar", "rsync", "inotify+rsync", "lsyncd", "unison", "syncthing", "walk"]


def percentile(values, part):
    """The smallest value that so large a part of them does not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * part) - 1)]


def number(value):
    """Three digits, as people read them."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def cell(values, unit, ours):
    """A median (for many samples with the 99th percentile), and how many times pleach's median it is."""
    middle = statistics.median(values)
    text = f"{number(middle)} {unit}"
    if unit == "ms":
        text = f"{number(middle)} / {number(percentile(values, 0.99))} ms"
    if ours and statistics.median(ours) > 0 and values is not ours:
        text += f" ({number(middle / statistics.median(ours))}x)"
    return text


def table(results, failed, chosen):
    """Markdown: a line for each measure, a column for each system; in brackets the ratio to pleach."""
    columns = [name for name in ORDER if name in chosen or any(name == system for _, _, _, system in results)]
    lines = ["| row | measure | " + " | ".join(columns) + " |", "| --- | --- |" + " --- |" * len(columns)]
    for row, what, unit in dict.fromkeys(key[:3] for key in results):
        by_system = {name: results.get((row, what, unit, name)) for name in columns}
        cells = [cell(values, unit, by_system.get("pleach")) if values else failed.get((row, name), ("-",))[0] for name, values in by_system.items()]
        lines.append(f"| {row} | {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def heading(about, scale, repeat, versions, loads, alone):
    """What the figures were measured on, and how disturbed."""
    busy = max(loads, default=0)
    said = [f"scale {scale}, {repeat} run{'s' * (repeat > 1)} of each, medians (ms: median / 99th percentile of all samples)",
            "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in about.items()),
            "; ".join(f"{name}: {version or 'missing'}" for name, version in versions.items()),
            f"load average before a row's systems: {min(loads, default=0):.1f} to {busy:.1f}",
            "bytes on the wire: the loopback's counter in a network namespace of our own, both directions, with headers"
            if alone else "bytes on the wire are not counted: no network namespace of our own"]
    return "\n".join(f"- {line}" for line in said)


def as_json(about, versions, arguments, loads, results, failed, notes):
    rows = [{"row": row, "measure": what, "unit": unit, "system": system, "values": values, "median": statistics.median(values),
             "p99": percentile(values, 0.99)} for (row, what, unit, system), values in results.items()]
    lost = [{"row": row, "system": system, "word": said[0], "why": said[1]} for (row, system), said in failed.items()]
    return json.dumps({"machine": about, "versions": versions, "arguments": arguments, "loads": loads, "rows": rows,
                       "failed": lost, "notes": notes}, indent=1)
