//! What users do.

use pleach_store::vfs::Kind;
use pleach_store::vfs::model::ModelUser;

use super::Random;
use super::checks::Rest;
use super::disk::Disks;
use super::node::SimNode;

const PATHS: [&str; 11] = ["x", "y", "z", "d", "d/f", "d/e", "d/e/g", "d/e/h", "k/l", "k", "k/d"];
/// Files that a user has open at once.
const OPEN_MAX: usize = 3;

/// One thing that a user does, in one go or in several calls.
#[derive(Clone, Debug)]
pub(super) struct Deed {
    what: What,
    path: &'static str,
    to: &'static str,
    content: String,
}

/// The end of a long content: longer than what travels with its announcement.
const LONG_BYTES: usize = 17_000;

/// Content that nobody wrote before, of which no beginning is one, and that is the same whichever other steps
/// are left out. Long ones are alike but for two places.
fn draw_content(step: u32, long: bool) -> String {
    let short = format!("content {step}.");
    if !long {
        return short;
    }
    let mut hash = blake3::Hasher::new().finalize_xof();
    let mut noise = vec![0; LONG_BYTES / 2];
    hash.fill(&mut noise);
    let mut content: String = noise.iter().map(|byte| format!("{byte:02x}")).collect();
    content.insert_str(step as usize * 1_009 % LONG_BYTES, &short);
    short + &content
}

#[derive(Clone, Copy, Debug)]
enum What {
    Write,
    Replace,
    RemoveAll,
    Remove,
    Mkdir,
    Chmod(u32),
    Rename,
    Touch,
    Append,
    Symlink,
    /// A write that puts the time back.
    Sneak,
    /// A file becomes a directory, a directory a file, either a link.
    ToDir,
    ToFile,
    ToLink,
    Truncate,
    /// An exchange of two names by three renames.
    Swap,
    Link,
}

impl Deed {
    /// What names its content.
    fn short(&self) -> &str {
        self.content.split_inclusive('.').next().unwrap_or_default()
    }

    /// Where.
    pub(super) const fn path(&self) -> &'static str {
        self.path
    }

    /// Does it; false where the disk refuses.
    pub(super) fn act(&self, user: &ModelUser) -> bool {
        let Self { what, path, to, content } = self;
        match what {
            What::Write => {
                path.rsplit_once('/').is_none_or(|(dir, _)| user.mkdir_all(dir).is_ok())
                    && user.write(path, content).is_ok()
            }
            What::Replace => user.replace(path, content).is_ok(),
            What::RemoveAll => user.remove_all(path).is_ok(),
            What::Remove => user.remove(path).is_ok(),
            What::Mkdir => user.mkdir_all(path).is_ok(),
            What::Chmod(mode) => user.chmod(path, *mode).is_ok(),
            What::Rename => !to.starts_with(&format!("{path}/")) && user.rename(path, to).is_ok(),
            What::Touch => user.touch(path, user.now()).is_ok(),
            What::Append => user.append(path, format!(" {content}")).is_ok(),
            What::Symlink => user.symlink(self.short(), path).is_ok(),
            What::Sneak => {
                let Ok(before) = user.stat(path) else { return false };
                before.kind == Kind::File && user.write(path, content).is_ok() && user.touch(path, before.mtime).is_ok()
            }
            What::ToDir => {
                user.remove_all(path).is_ok() && user.mkdir_all(path).is_ok() && {
                    // Not in every directory is something.
                    user.write(format!("{path}/f"), content).is_ok()
                }
            }
            What::ToFile => user.remove_all(path).is_ok() && user.write(path, content).is_ok(),
            What::ToLink => user.remove_all(path).is_ok() && user.symlink(self.short(), path).is_ok(),
            What::Truncate => user.truncate(path, 9).is_ok(),
            What::Swap => {
                let apart = !to.starts_with(&format!("{path}/")) && !path.starts_with(&format!("{to}/"));
                apart
                    && path != to
                    && user.rename(path, ".swap~").is_ok()
                    && (user.rename(to, path).is_ok() | user.rename(".swap~", to).is_ok())
            }
            What::Link => user.hard_link(path, to).is_ok(),
        }
    }
}

impl Deed {
    /// Notes what may be gone after it.
    fn may_take_away(&self, rest: &mut Rest) {
        use What::{Mkdir, Remove, RemoveAll, Rename, Swap, ToDir, ToFile, ToLink};
        if matches!(self.what, Mkdir | Remove | RemoveAll | Rename | Swap | ToDir | ToFile | ToLink) {
            rest.take_away(self.path);
        }
        if matches!(self.what, Rename | Swap) {
            rest.take_away(self.to);
        }
        // Somebody may do it between two calls: what it writes is whole whatever becomes of it.
        rest.wrote(self.content.as_bytes());
        rest.wrote(self.short().as_bytes());
        rest.wrote(b"");
    }

    /// It will be done between two calls of the engine, or never.
    pub(super) fn announce(&self, rest: &mut Rest) {
        self.may_take_away(rest);
        rest.plan(self.path);
        rest.plan(self.to);
    }

    /// Notes what it left behind.
    fn left(&self, user: &ModelUser, rest: &mut Rest, done: bool) {
        let written = matches!(self.what, What::Write | What::Replace | What::Symlink | What::ToFile | What::ToLink);
        if done && written {
            rest.put(self.path);
        }
        for path in [self.path, self.to] {
            rest.wrote(&user.read(path).unwrap_or_default());
        }
    }
}

/// Draws something that a user may do, at this path or any, and notes what it touches.
pub(super) fn plan(random: &mut Random, rest: &mut Rest, (step, long): (u32, bool), at: Option<&[u8]>) -> Deed {
    let path = PATHS[random.index(PATHS.len())];
    let path = PATHS.into_iter().find(|known| Some(known.as_bytes()) == at).unwrap_or(path);
    let to = PATHS[random.index(PATHS.len())];
    let content = draw_content(step, long);
    let what = match random.below(24) {
        0..=5 => What::Write,
        6 | 7 => What::Replace,
        8 => What::RemoveAll,
        9 => What::Remove,
        10 => What::Mkdir,
        11 => What::Chmod(if random.once_in(2) { 0o700 } else { 0o750 }),
        12 | 13 => What::Rename,
        14 => What::Touch,
        15 => What::Append,
        16 => What::Symlink,
        17 => What::Sneak,
        18 => What::ToDir,
        19 => What::ToFile,
        20 => What::ToLink,
        21 => What::Truncate,
        22 => What::Swap,
        _ => What::Rename,
    };
    // What fails half-way touches, too.
    rest.touch(path);
    if matches!(what, What::Rename | What::Swap | What::Link) {
        rest.touch(to);
        rest.touch(".swap~");
    }
    Deed { what, path, to, content }
}

/// What a user's deed depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'p> {
    pub(super) disks: Disks,
    pub(super) step: u32,
    /// Where, and whether it is to be removed; anything anywhere if it is not said.
    pub(super) path: Option<(&'p [u8], bool)>,
}

/// Does something a user does, and says what; none where the disk refuses it.
pub(super) fn act(node: &mut SimNode, random: &mut Random, rest: &mut Rest, at: At<'_>) -> Option<String> {
    let (user, At { disks, step, path: at }) = (node.model.disk.user(), at);
    if at.is_none() && disks.open_files && random.once_in(4) {
        let what = with_open_file(node, random, rest, step);
        // It may have any name by now, be in the vault, and hold parts of what several wrote.
        rest.wrote_all(&user);
        rest.wrote_displaced(&user, &format!("content {step}"));
        return what;
    }
    let mut deed = plan(random, rest, (step, disks.long), at.map(|(path, _)| path));
    if at.is_some_and(|(_, gone)| gone) {
        deed.what = What::RemoveAll;
    } else if disks.links && random.once_in(8) {
        deed.what = What::Link;
        rest.touch(deed.to);
    }
    rest.touch_links(&user, deed.path);
    deed.may_take_away(rest);
    // What is refused may be half done.
    let done = deed.act(&user);
    deed.left(&user, rest, done);
    let refused = if done { "" } else { ", refused" };
    let content = deed.short();
    let Deed { what, path, to, .. } = &deed;
    Some(match what {
        What::Rename | What::Swap | What::Link => format!("{what:?} {path} {to}{refused}"),
        _ => format!("{what:?} {path} '{content}'{refused}"),
    })
}

/// Opens a file for writing, writes into one that is open, or closes it.
fn with_open_file(node: &mut SimNode, random: &mut Random, rest: &mut Rest, step: u32) -> Option<String> {
    let user = node.model.disk.user();
    let open = &mut node.trials.open;
    let content = format!("content {step}");
    if open.is_empty() || open.len() < OPEN_MAX && random.once_in(3) {
        let path = PATHS[random.index(PATHS.len())];
        let file = user.open_writing(path).ok()?;
        rest.touch_links(&user, path);
        open.push(file);
        return Some(format!("open {path}"));
    }
    let at = random.index(open.len());
    // Its names were touched when it was opened and whenever they moved.
    match random.below(5) {
        0 => open[at].write_at(0, content.as_bytes().get(..8)?).ok().map(|()| "begins to write".to_owned()),
        1 => open[at].write_at(0, &content).ok().map(|()| {
            rest.stored(&content);
            format!("writes '{content}'")
        }),
        2 => open[at].append(" late").ok().map(|()| "appends to an open file".to_owned()),
        3 => open[at].store(0, &content).ok().map(|()| {
            rest.stored(&content);
            format!("stores '{content}'")
        }),
        _ => {
            drop(open.remove(at));
            Some("closes a file".to_owned())
        }
    }
}

impl Rest {
    /// A change of one name is a change of all names of the inode.
    fn touch_links(&mut self, user: &ModelUser, path: &str) {
        self.touch(path);
        self.touch_others_links(user, path);
    }

    fn touch_others_links(&mut self, user: &ModelUser, path: &str) {
        for other in all_names(user, path) {
            self.touch(other);
        }
    }
}

/// All names of a file or a link that has several on a node: a change that is applied to one name has its times and mode on all.
pub(super) fn all_names(user: &ModelUser, path: &str) -> Vec<&'static str> {
    let Ok(known) = user.stat(path) else { return Vec::new() };
    if known.links < 2 || known.kind == Kind::Dir {
        return Vec::new();
    }
    let same = |other: &&str| user.stat(other).is_ok_and(|meta| meta.inode == known.inode);
    PATHS.into_iter().chain([".swap~"]).filter(same).collect()
}
