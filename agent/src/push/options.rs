//! Which of rsync's options a config may add, and why the others are refused.

/// What may be added: nothing here changes which paths are sent or deleted, or shows half a file.
const ALLOWED: &[&str] = &[
    "--acls",
    "--address",
    "--backup",
    "--backup-dir",
    "--block-size",
    "--checksum",
    "--checksum-choice",
    "--cc",
    "--chmod",
    "--chown",
    "--compress",
    "--compress-choice",
    "--zc",
    "--compress-level",
    "--zl",
    "--delay-updates",
    "--executability",
    "--fsync",
    "--fuzzy",
    "--groupmap",
    "--iconv",
    "--ipv4",
    "--ipv6",
    "--max-alloc",
    "--no-compress",
    "--no-group",
    "--no-g",
    "--no-owner",
    "--no-o",
    "--no-perms",
    "--no-p",
    "--no-whole-file",
    "--no-W",
    "--numeric-ids",
    "--omit-dir-times",
    "--omit-link-times",
    "--preallocate",
    "--protocol",
    "--skip-compress",
    "--sockopts",
    "--sparse",
    "--suffix",
    "--temp-dir",
    "--usermap",
    "--whole-file",
    "--xattrs",
];
/// The same as letters.
const LETTERS: &str = "46ABEJOSTWXbcyz";
/// Those of the letters that take a value.
const WITH_VALUE: &str = "BT";
/// What pleach says itself: harmless in what people bring along, and left out.
const IMPLIED_LETTERS: &str = "valptgovhiPr";
const IMPLIED: &[&str] = &[
    "--archive",
    "--group",
    "--itemize-changes",
    "--links",
    "--owner",
    "--partial",
    "--perms",
    "--progress",
    "--quiet",
    "--recursive",
    "--stats",
    "--times",
    "--verbose",
];
/// What is refused with a reason of its own.
const REFUSED: &[(&str, &str)] = &[
    ("--append", "a reader would see half a file"),
    ("--append-verify", "a reader would see half a file"),
    ("--inplace", "a reader would see half a file"),
    ("--write-devices", "a reader would see half a file"),
    ("--bwlimit", "say bwlimit in [[peer]]"),
    ("--password-file", "say password_file in [[peer]]"),
    ("--timeout", "say timeout in [[peer]]"),
    ("--contimeout", "say timeout in [[peer]]"),
    ("--port", "say the port in the address"),
    ("--exclude", "say ignore in [[tree]]"),
    ("--exclude-from", "say ignore in [[tree]]"),
    ("--include", "say ignore in [[tree]]"),
    ("--include-from", "say ignore in [[tree]]"),
    ("--filter", "say ignore in [[tree]]"),
    ("--cvs-exclude", "say ignore in [[tree]]"),
    ("--dry-run", "say pleach push --dry-run"),
    ("--ignore-errors", "what could not be read would count as deleted"),
    ("--force", "it would delete what pleach did not push"),
    ("--remove-source-files", "it would delete the tree's own files"),
    ("--update", "a newer file there would stay although the tree has another"),
    ("--existing", "new files would not be pushed"),
    ("--ignore-existing", "changed files would not be pushed"),
    ("--size-only", "changed files of the same length would not be pushed"),
    ("--max-size", "say ignore in [[tree]]"),
    ("--min-size", "say ignore in [[tree]]"),
    ("--no-times", "without times a full check would send everything"),
    ("--no-t", "without times a full check would send everything"),
    ("--copy-links", "links are pushed as links"),
    ("--hard-links", "groups of hard links are not synced"),
];

/// The options of a config as they go to rsync: what pleach says by itself is left out.
///
/// # Errors
/// The first that is refused, and why.
pub fn check_options(options: &[String]) -> Result<Vec<String>, String> {
    let mut taken = Vec::new();
    let mut values = options.iter();
    while let Some(option) = values.next() {
        let wants_value = check(option, &mut taken)?;
        if wants_value {
            let value = values.next().ok_or_else(|| format!("'{option}' needs a value"))?;
            taken.push(value.clone());
        }
    }
    Ok(taken)
}

/// Checks one option; says whether its value is the next word.
fn check(option: &str, taken: &mut Vec<String>) -> Result<bool, String> {
    if option.bytes().any(|b| b == 0 || b == b'\n') {
        return Err(format!("'{}' has control characters", option.escape_debug()));
    }
    if let Some(long) = option.strip_prefix("--") {
        let name = format!("--{}", long.split('=').next().unwrap_or_default());
        if name.starts_with("--delete") || name.starts_with("--del") {
            return Err(format!(
                "'{name}' is refused: pleach deletes by name; say mirror = true for what it did not push"
            ));
        }
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            return Err(format!("'{name}' is refused: {why}"));
        }
        if ALLOWED.contains(&name.as_str()) {
            taken.push(option.to_owned());
        } else if !IMPLIED.contains(&name.as_str()) {
            return Err(format!(
                "'{name}' is refused: it is none of the options that pleach knows to keep its promises"
            ));
        }
        return Ok(false);
    }
    let letters = option.strip_prefix('-').filter(|letters| !letters.is_empty());
    let letters = letters.ok_or_else(|| format!("'{option}' is no option of rsync"))?;
    for (at, letter) in letters.char_indices() {
        if WITH_VALUE.contains(letter) {
            let value = &letters[at + 1..];
            taken.push(format!("-{letter}{value}"));
            return Ok(value.is_empty());
        }
        if LETTERS.contains(letter) {
            taken.push(format!("-{letter}"));
        } else if !IMPLIED_LETTERS.contains(letter) {
            let why = "it is none of the options that pleach knows to keep its promises";
            return Err(format!("'-{letter}' is refused: {why}"));
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(options: &[&str]) -> Result<Vec<String>, String> {
        check_options(&options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_keeps_the_promises_is_passed_on() {
        assert_eq!(checked(&["-vzrtopg", "--progress"]).unwrap(), ["-z"]);
        assert_eq!(checked(&["--compress-level=9", "-cW"]).unwrap(), ["--compress-level=9", "-c", "-W"]);
        assert_eq!(checked(&["-T", "/tmp", "-B4096"]).unwrap(), ["-T", "/tmp", "-B4096"]);
    }

    #[test]
    fn what_would_break_them_is_refused_by_name() {
        for (options, name) in [
            (&["--delete"][..], "--delete"),
            (&["-avz", "--delete-after"], "--delete-after"),
            (&["--del"], "--del"),
            (&["--inplace"], "--inplace"),
            (&["-zu"], "-u"),
            (&["--password-file=/x"], "--password-file"),
            (&["--files-from=/x"], "--files-from"),
            (&["-e", "ssh"], "-e"),
            (&["-n"], "-n"),
            (&["--rsync-path=x"], "--rsync-path"),
            (&["rsync://elsewhere/m"], "rsync://elsewhere/m"),
            (&["-"], "-"),
            (&["-T"], "-T"),
        ] {
            let error = checked(options).unwrap_err();
            assert!(error.starts_with(&format!("'{name}'")), "{options:?}: {error}");
        }
    }
}
