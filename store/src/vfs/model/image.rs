//! Inodes and names as plain values, and the changes that lead from one image to the next.
//!
//! The live and the durable disk are two images; a change that was made to the live one is logged
//! and made again to the durable one when the log commits.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_protocol::time::Time;

use crate::vfs::Kind;

/// An inode for the model's own use. Never used twice, unlike the inode's number.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Id(pub(super) u64);

/// The directory at the root's path while the tree is mounted.
pub(super) const ROOT: Id = Id(1);
/// The empty directory that the root's path shows while it is not.
pub(super) const MOUNT_POINT: Id = Id(2);

#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    pub(super) btime: Time,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    File(Arc<Vec<u8>>),
    Dir(BTreeMap<Vec<u8>, Id>),
    Symlink(Vec<u8>),
    Special,
}

#[derive(Clone, Debug)]
pub(super) struct Inode {
    /// What stat shows; an unlinked inode's number may be another's already.
    pub(super) number: u64,
    pub(super) attributes: Attributes,
    pub(super) body: Body,
    /// Names of anything but a directory.
    names: u64,
    /// Directories in this directory.
    subdirs: u64,
    /// Where this directory has its name; the roots are in themselves.
    pub(super) parent: Option<Id>,
}

/// One step of a logged operation.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// A new inode without a name.
    Create { id: Id, inode: Inode },
    /// A name comes (`Some`) or goes.
    Name { dir: Id, name: Vec<u8>, id: Option<Id> },
    /// New attributes.
    Attributes { id: Id, attributes: Attributes },
    /// A file is cut or gets zeros at its end.
    Size { id: Id, size: usize },
    /// A file's blocks were written, and this record makes them its content.
    Data { id: Id, data: Arc<Vec<u8>> },
}

impl Change {
    /// Whether it says something of this inode that syncing the file makes durable without the log.
    pub(super) fn is_about(&self, wanted: Id) -> bool {
        match self {
            Self::Attributes { id, .. } | Self::Size { id, .. } | Self::Data { id, .. } => *id == wanted,
            Self::Create { .. } | Self::Name { .. } => false,
        }
    }
}

impl Inode {
    pub(super) fn new(number: u64, attributes: Attributes, body: Body) -> Self {
        Self { number, attributes, body, names: 0, subdirs: 0, parent: None }
    }

    pub(super) fn kind(&self) -> Kind {
        match self.body {
            Body::File(_) => Kind::File,
            Body::Dir(_) => Kind::Dir,
            Body::Symlink(_) => Kind::Symlink,
            Body::Special => Kind::Special,
        }
    }

    /// What stat calls the number of links.
    pub(super) fn links(&self) -> u64 {
        match self.body {
            Body::Dir(_) if self.parent.is_some() => 2 + self.subdirs,
            Body::Dir(_) => 0,
            _ => self.names,
        }
    }

    /// The same inode without a name, as the disk holds it before the log says what it is called.
    pub(super) fn nameless(&self) -> Self {
        Self { names: 0, ..self.clone() }
    }

    /// A file's bytes; none for anything else.
    pub(super) fn data(&self) -> Option<&Arc<Vec<u8>>> {
        match &self.body {
            Body::File(data) => Some(data),
            _ => None,
        }
    }

    pub(super) fn data_mut(&mut self) -> Option<&mut Arc<Vec<u8>>> {
        match &mut self.body {
            Body::File(data) => Some(data),
            _ => None,
        }
    }

    /// A directory's names; none for anything else.
    pub(super) fn names(&self) -> Option<&BTreeMap<Vec<u8>, Id>> {
        match &self.body {
            Body::Dir(names) => Some(names),
            _ => None,
        }
    }
}

/// All inodes of one disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    pub(super) inodes: BTreeMap<Id, Inode>,
}

impl Image {
    /// A disk with its two roots.
    pub(super) fn new(root: Inode, mount_point: Inode) -> Self {
        let mut inodes = BTreeMap::new();
        for (id, inode) in [(ROOT, root), (MOUNT_POINT, mount_point)] {
            inodes.insert(id, Inode { parent: Some(id), ..inode });
        }
        Self { inodes }
    }

    pub(super) fn get(&self, id: Id) -> Option<&Inode> {
        self.inodes.get(&id)
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Create { id, inode } => {
                // A file that was synced by itself is there before the log says so, and is newer.
                self.inodes.entry(*id).or_insert_with(|| inode.clone());
            }
            Change::Name { dir, name, id } => self.set_name(*dir, name, *id),
            Change::Attributes { id, attributes } => {
                if let Some(inode) = self.inodes.get_mut(id) {
                    inode.attributes = *attributes;
                }
            }
            Change::Size { id, size } => {
                if let Some(data) = self.inodes.get_mut(id).and_then(Inode::data_mut) {
                    Arc::make_mut(data).resize(*size, 0);
                }
            }
            Change::Data { id, data } => {
                if let Some(old) = self.inodes.get_mut(id).and_then(Inode::data_mut) {
                    *old = Arc::clone(data);
                }
            }
        }
    }

    fn set_name(&mut self, dir: Id, name: &[u8], id: Option<Id>) {
        let Some(Body::Dir(names)) = self.inodes.get_mut(&dir).map(|inode| &mut inode.body) else { return };
        let old = match id {
            Some(id) => names.insert(name.to_vec(), id),
            None => names.remove(name),
        };
        let mut subdirs_gone = 0;
        if let Some(inode) = old.and_then(|old| self.inodes.get_mut(&old)) {
            match inode.body {
                Body::Dir(_) => {
                    inode.parent = None;
                    subdirs_gone = 1;
                }
                _ => inode.names -= 1,
            }
        }
        let mut subdirs_new = 0;
        if let Some(inode) = id.and_then(|id| self.inodes.get_mut(&id)) {
            match inode.body {
                Body::Dir(_) => {
                    inode.parent = Some(dir);
                    subdirs_new = 1;
                }
                _ => inode.names += 1,
            }
        }
        if let Some(inode) = self.inodes.get_mut(&dir) {
            inode.subdirs = inode.subdirs + subdirs_new - subdirs_gone;
        }
    }

    /// Drops what has no name.
    pub(super) fn drop_nameless(&mut self) {
        self.inodes.retain(|_, inode| inode.links() > 0);
    }

    /// Whether `dir` is `ancestor` or lies beneath it.
    pub(super) fn is_within(&self, ancestor: Id, dir: Id) -> bool {
        let mut at = dir;
        loop {
            if at == ancestor {
                return true;
            }
            match self.get(at).and_then(|inode| inode.parent) {
                Some(parent) if parent != at => at = parent,
                _ => return false,
            }
        }
    }

    /// A path from the root for people to read; `#` and the inode's number where it has no name.
    pub(super) fn label(&self, id: Id) -> String {
        let mut names: Vec<String> = Vec::new();
        let mut at = id;
        while at != ROOT && at != MOUNT_POINT {
            let holder = self.inodes.iter().find_map(|(dir, inode)| {
                let (name, _) = inode.names()?.iter().find(|(_, child)| **child == at)?;
                Some((*dir, name.escape_ascii().to_string()))
            });
            let Some((dir, name)) = holder else {
                names.push(format!("#{}", self.get(at).map_or(0, |inode| inode.number)));
                break;
            };
            names.push(name);
            at = dir;
        }
        if names.is_empty() {
            return ".".to_owned();
        }
        names.reverse();
        names.join("/")
    }
}
