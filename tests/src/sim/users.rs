//! What users do.

use super::Random;
use super::checks::Rest;
use super::node::SimNode;

const PATHS: [&str; 9] = ["x", "y", "z", "d", "d/f", "d/e", "d/e/g", "d/e/h", "k/l"];

/// Does something a user does, and says what; none where the disk refuses it.
pub(super) fn act(node: &mut SimNode, random: &mut Random, rest: &mut Rest, step: u32) -> Option<String> {
    let user = node.model.disk.user();
    let path = PATHS[random.index(PATHS.len())];
    // Nobody wrote it before, no beginning of it is one, and it is the same whichever other steps are left out.
    let content = format!("content {step}.");
    // What fails half-way touches, too.
    rest.touch(path);
    rest.wrote(content.as_bytes());
    let (what, done) = match random.below(16) {
        0..=4 => {
            let made = path.rsplit_once('/').is_none_or(|(dir, _)| user.mkdir_all(dir).is_ok());
            ("write", made && user.write(path, &content).is_ok())
        }
        5 | 6 => ("replace", user.replace(path, &content).is_ok()),
        7 | 8 => {
            rest.take_away(path);
            ("remove", if random.once_in(2) { user.remove_all(path).is_ok() } else { user.remove(path).is_ok() })
        }
        9 => ("mkdir", user.mkdir_all(path).is_ok()),
        10 => ("chmod", user.chmod(path, if random.once_in(2) { 0o700 } else { 0o750 }).is_ok()),
        11 | 12 => {
            let to = PATHS[random.index(PATHS.len())];
            let beneath = to.starts_with(&format!("{path}/"));
            let moved = !beneath && user.rename(path, to).is_ok();
            if moved {
                rest.touch(to);
                rest.take_away(path);
                rest.take_away(to);
                return Some(format!("rename {path} {to}"));
            }
            ("rename", false)
        }
        13 => {
            let time = node.model.disk.now();
            ("touch", user.touch(path, time).is_ok())
        }
        14 => ("append", user.append(path, format!(" {content}")).is_ok()),
        _ => ("symlink", user.symlink(&content, path).is_ok()),
    };
    if !done {
        return None;
    }
    if what == "append" {
        rest.wrote(&user.read(path).unwrap_or_default());
    }
    if ["write", "replace", "symlink"].contains(&what) {
        rest.put(path);
    }
    Some(format!("{what} {path} '{content}'"))
}
