//! What users do to a tree while its agent works, and how much of it the ledger may rely on.
//!
//! An agent may put something else at a path between a user's look and the user's deed. What was
//! looked at is therefore kept open, and its number of links tells whether the deed met it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, open, renameat_with};

use crate::ledger::Ledger;

/// The users of one node.
pub struct User<'a> {
    pub node: usize,
    pub root: &'a Path,
    /// A place beside the tree, on its file system.
    pub beside: &'a Path,
    pub ledger: &'a mut Ledger,
}

/// What stood at a path, kept open.
struct Seen {
    file: File,
    inode: u64,
    links: u64,
    /// Of a regular file.
    hash: Option<String>,
}

pub fn digest(content: &[u8]) -> String {
    blake3::hash(content).to_hex().to_string()
}

/// Whether two paths lead to one inode.
fn one(file: &File, path: &Path) -> bool {
    let (Ok(held), Ok(there)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (held.dev(), held.ino()) == (there.dev(), there.ino())
}

fn whole(file: &mut File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut content)?;
    Ok(content)
}

impl User<'_> {
    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }

    /// Looks at what is no directory.
    fn see(&self, path: &Path) -> io::Result<Seen> {
        let file = File::from(open(self.at(path), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?);
        let meta = file.metadata()?;
        if meta.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let held = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let hash = if meta.is_file() { Some(digest(&fs::read(held)?)) } else { None };
        Ok(Seen { file, inode: meta.ino(), links: meta.nlink(), hash })
    }

    /// After what was seen was replaced or removed: was it that, or what an agent put there meanwhile?
    fn gone(&mut self, seen: &Seen) {
        let links = seen.file.metadata().unwrap().nlink();
        if links + 1 != seen.links {
            self.ledger.unsure(self.node);
        } else if let Some(hash) = &seen.hash {
            self.ledger.superseded(self.node, hash);
        }
    }

    /// All paths at and beneath a path.
    fn beneath(&self, path: &Path) -> Vec<PathBuf> {
        let (mut found, mut todo) = (Vec::new(), vec![path.to_owned()]);
        while let Some(path) = todo.pop() {
            for entry in fs::read_dir(self.at(&path)).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    todo.push(path.join(entry.file_name()));
                } else {
                    found.push(path.join(entry.file_name()));
                }
            }
            found.push(path);
        }
        found
    }

    /// `mkdir -p`.
    pub fn mkdir(&mut self, path: &Path) -> io::Result<()> {
        let mut steps: Vec<&Path> = path.ancestors().filter(|step| !step.as_os_str().is_empty()).collect();
        steps.reverse();
        for step in steps {
            self.ledger.tried.insert(step.to_owned());
            match fs::create_dir(self.at(step)) {
                Ok(()) => self.ledger.made(step),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.at(step).is_dir() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn parent(&mut self, path: &Path) -> io::Result<()> {
        self.ledger.tried.insert(path.to_owned());
        self.mkdir(path.parent().unwrap())
    }

    /// Opens a file to change it in place; what it held is about to be superseded.
    pub fn open(&mut self, path: &Path, create: bool) -> io::Result<File> {
        if create {
            self.parent(path)?;
        }
        self.ledger.tried.insert(path.to_owned());
        let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap();
        let options = OpenOptions::new().read(true).write(true).create(create).custom_flags(flags).to_owned();
        let mut file = options.open(self.at(path))?;
        self.supersede(&mut file)?;
        if create {
            self.ledger.made.insert(path.to_owned());
        }
        Ok(file)
    }

    /// What an open file holds is about to be written over.
    pub fn supersede(&mut self, file: &mut File) -> io::Result<()> {
        self.ledger.superseded(self.node, &digest(&whole(file)?));
        let meta = file.metadata()?;
        if meta.nlink() > 1 {
            self.ledger.through_links = true;
            // It is an edit under each of its names.
            let same =
                |path: &PathBuf| fs::symlink_metadata(self.at(path)).is_ok_and(|other| other.ino() == meta.ino());
            let names: Vec<PathBuf> = self.beneath(Path::new("")).into_iter().filter(same).collect();
            self.ledger.tried.extend(names);
        }
        Ok(())
    }

    /// The file's content is whole: it is owed if the path still leads to it.
    pub fn written(&mut self, path: &Path, file: &mut File) -> io::Result<()> {
        let hash = digest(&whole(file)?);
        if one(file, &self.at(path)) {
            self.ledger.wrote(self.node, path, &hash);
        }
        Ok(())
    }

    /// Writes to a file in place.
    pub fn edit(
        &mut self,
        path: &Path,
        create: bool,
        change: impl FnOnce(&mut File, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut file = self.open(path, create)?;
        let (before, length) = (digest(&whole(&mut file)?), file.metadata()?.len());
        change(&mut file, length)?;
        if digest(&whole(&mut file)?) != before {
            self.written(path, &mut file)?;
        }
        Ok(())
    }

    /// A new file, here or beside the tree, that is renamed to the path.
    pub fn replace(&mut self, path: &Path, content: &[u8], inside: bool) -> io::Result<()> {
        self.parent(path)?;
        let name = format!(".new-{}", self.ledger.now);
        let new = if inside { self.at(&path.with_file_name(&name)) } else { self.beside.join(&name) };
        fs::write(&new, content)?;
        let shown = path.with_file_name(&name);
        if inside {
            self.ledger.wrote(self.node, &shown, &digest(content));
            self.ledger.tried.insert(shown.clone());
        }
        let put = self.over(&new, path);
        if put.is_ok() {
            self.ledger.wrote(self.node, path, &digest(content));
        } else {
            fs::remove_file(&new).ok();
            self.ledger.superseded(self.node, &digest(content));
        }
        if inside {
            self.ledger.removed(self.node, &shown);
        }
        put
    }

    /// Renames over what is no directory, or to where nothing is.
    fn over(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        match self.see(to) {
            Ok(seen) => {
                if fs::symlink_metadata(from)?.ino() == seen.inode {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                fs::rename(from, self.at(to))?;
                self.gone(&seen);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(renameat_with(CWD, from, CWD, self.at(to), RenameFlags::NOREPLACE)?)
            }
            Err(error) => Err(error),
        }
    }

    /// Renames what there is, with all beneath; a file or link at the target is replaced.
    pub fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.parent(to)?;
        let before = self.beneath(from);
        self.made_beneath(from, to, &before);
        let is_dir = fs::symlink_metadata(self.at(from))?.is_dir();
        if is_dir && fs::symlink_metadata(self.at(to)).is_ok_and(|meta| meta.is_dir()) {
            // Only an empty one is replaced.
            fs::rename(self.at(from), self.at(to))?;
        } else {
            self.over(&self.at(from), to)?;
        }
        self.moved(from, to, before);
        Ok(())
    }

    /// Two paths change places.
    pub fn swap(&mut self, left: &Path, right: &Path) -> io::Result<()> {
        let (l, r) = (self.beneath(left), self.beneath(right));
        self.made_beneath(left, right, &l);
        self.made_beneath(right, left, &r);
        renameat_with(CWD, self.at(left), CWD, self.at(right), RenameFlags::EXCHANGE)?;
        self.moved(left, right, l);
        self.moved(right, left, r);
        Ok(())
    }

    fn made_beneath(&mut self, from: &Path, to: &Path, paths: &[PathBuf]) {
        for path in paths {
            self.ledger.tried.insert(to.join(path.strip_prefix(from).unwrap()));
        }
    }

    /// After a rename: what was beneath before, and what is there now.
    fn moved(&mut self, from: &Path, to: &Path, mut paths: Vec<PathBuf>) {
        let now = self.beneath(to);
        paths.extend(now.iter().map(|path| rebased(path, to, from)));
        for path in paths {
            self.ledger.removed(self.node, &path);
        }
        for path in now {
            self.ledger.made(&path);
        }
    }

    pub fn unlink(&mut self, path: &Path) -> io::Result<()> {
        let seen = self.see(path)?;
        fs::remove_file(self.at(path))?;
        self.gone(&seen);
        self.ledger.removed(self.node, path);
        Ok(())
    }

    /// `rm -rf`, one entry after the other.
    pub fn remove(&mut self, path: &Path) -> io::Result<()> {
        if !fs::symlink_metadata(self.at(path))?.is_dir() {
            return self.unlink(path);
        }
        for entry in fs::read_dir(self.at(path))?.flatten() {
            self.remove(&path.join(entry.file_name())).ok();
        }
        fs::remove_dir(self.at(path))?;
        self.ledger.removed(self.node, path);
        Ok(())
    }

    /// Takes it out of the tree in one rename, then deletes it there.
    pub fn move_out(&mut self, path: &Path) -> io::Result<()> {
        let to = self.beside.join(format!("out-{}", self.ledger.now));
        let before = self.beneath(path);
        fs::rename(self.at(path), &to)?;
        let mut gone = before;
        let mut todo = vec![to.clone()];
        while let Some(at) = todo.pop() {
            gone.push(rebased(&at, &to, path));
            let meta = fs::symlink_metadata(&at)?;
            if meta.is_dir() {
                todo.extend(fs::read_dir(&at)?.flatten().map(|entry| entry.path()));
            } else if meta.is_file() {
                self.ledger.superseded(self.node, &digest(&fs::read(&at)?));
            }
        }
        for path in gone {
            self.ledger.removed(self.node, &path);
        }
        if fs::symlink_metadata(&to)?.is_dir() { fs::remove_dir_all(to) } else { fs::remove_file(to) }
    }

    pub fn symlink(&mut self, target: &str, path: &Path) -> io::Result<()> {
        self.parent(path)?;
        std::os::unix::fs::symlink(target, self.at(path))?;
        self.ledger.made(path);
        Ok(())
    }

    pub fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.parent(to)?;
        fs::hard_link(self.at(from), self.at(to))?;
        self.ledger.made(to);
        Ok(())
    }

    pub fn chmod(&mut self, path: &Path, mode: u32) -> io::Result<()> {
        let meta = fs::symlink_metadata(self.at(path))?;
        if meta.is_symlink() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mode = if meta.is_dir() { mode | 0o700 } else { mode };
        fs::set_permissions(self.at(path), fs::Permissions::from_mode(mode))
    }

    pub fn touch(&mut self, path: &Path, time: std::time::SystemTime) -> io::Result<()> {
        let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap();
        OpenOptions::new().read(true).custom_flags(flags).open(self.at(path))?.set_modified(time)
    }
}

fn rebased(path: &Path, from: &Path, to: &Path) -> PathBuf {
    match path.strip_prefix(from).unwrap() {
        rest if rest.as_os_str().is_empty() => to.to_owned(),
        rest => to.join(rest),
    }
}

/// Writes a content in many small writes.
pub fn dribble(file: &mut File, content: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    for part in content.chunks(content.len().div_ceil(20).max(1)) {
        file.write_all(part)?;
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Ok(())
}
