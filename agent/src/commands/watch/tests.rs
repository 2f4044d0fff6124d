use pleach_protocol::path::TreePath;

use super::*;

fn seen(mask: EventMask, dir: &str, name: &[u8]) -> Seen {
    Seen { mask, dir: TreePath::parse(dir.as_bytes()).unwrap(), name: name.into(), cookie: 7 }
}

fn written(shape: &Shape, seen: &Seen) -> String {
    let mut out = Vec::new();
    Line::new(b"/data", seen).write(shape, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn lines_look_as_those_of_inotifywait() {
    let event = seen(EventMask::CREATE | EventMask::ISDIR, "a/b", b"c d");
    let format = |format: &str| Shape::Format { format: format.into(), time: "%Y".into() };
    let year = chrono::Local::now().format("%Y").to_string();
    for (shape, line) in [
        (Shape::Plain, "/data/a/b/ CREATE,ISDIR c d\n"),
        (Shape::Csv, "/data/a/b/,\"CREATE,ISDIR\",c d\n"),
        (format("%T %w%f %e"), &format!("{year} /data/a/b/c d CREATE,ISDIR\n")),
        (format("%w%f%0"), "/data/a/b/c d\0"),
        (format("%|e%n"), "CREATE|ISDIR\n"),
        (format("%c%%%q%"), "7%%q%\n"),
    ] {
        assert_eq!(written(&shape, &event), line, "{shape:?}");
    }
    assert_eq!(written(&Shape::Csv, &seen(EventMask::OPEN, "a", b"x\"y,z")), "/data/a/,OPEN,\"x\"\"y,z\"\n");
    let row: serde_json::Value = serde_json::from_str(&written(&Shape::Json, &event)).unwrap();
    assert_eq!((row["dir"].as_str(), row["name"].as_str()), (Some("/data/a/b/"), Some("c d")));
    assert_eq!(row["events"], serde_json::json!(["CREATE", "ISDIR"]));
    let row: serde_json::Value =
        serde_json::from_str(&written(&Shape::Json, &seen(EventMask::OPEN, "a", b"\xff"))).unwrap();
    assert_eq!(row["name_b64"], "/w==");
}

#[test]
fn event_names_and_time_formats_are_checked() {
    let mask = |names: &[&str]| format::mask(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
    assert_eq!(
        mask(&["close", "Delete"]).unwrap(),
        EventMask::CLOSE_WRITE | EventMask::CLOSE_NOWRITE | EventMask::DELETE
    );
    assert!(mask(&[]).unwrap().contains(EventMask::ACCESS | EventMask::MOVE_SELF));
    assert!(mask(&["modfy"]).unwrap_err().contains("'modfy'"));
    assert!(format::check_time("%d/%m/%y %H:%M").is_ok());
    assert!(format::check_time("%Q!").is_err());
}

#[test]
fn counts_are_a_sorted_table() {
    let mut stats = Stats::new(format::mask(&[]).unwrap(), None).unwrap();
    let events = [("a", 1), ("b", 3)].map(|(dir, n)| (seen(EventMask::OPEN, dir, b"f"), n));
    for (event, n) in &events {
        (0..*n).for_each(|_| stats.count(&Line::new(b"/d", event)));
    }
    stats.count(&Line::new(b"/d", &seen(EventMask::DELETE | EventMask::ISDIR, "a", b"g")));
    let text = String::from_utf8(stats.table(Shape::Plain)).unwrap();
    assert_eq!(text, "total  open  delete  path\n    3     3       0  /d/b/\n    2     1       1  /d/a/\n");
    let json = String::from_utf8(stats.table(Shape::Json)).unwrap();
    assert_eq!(json.lines().next(), Some(r#"{"events":{"OPEN":3},"path":"/d/b/","total":3}"#));
    assert_eq!(Stats::new(EventMask::OPEN, Some("delete")).err().map(|failure| failure.code), Some(2));
}
