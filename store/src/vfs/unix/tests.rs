use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;

use rustix::fs::{Gid, Uid};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use super::super::contract::contract;
use super::super::sys::testing::{SharedPage, forbid_call, take_write_lease};
use super::*;

const NOBODY: u32 = 65_534;

fn number<T>(result: io::Result<T>) -> Option<i32> {
    result.err().expect("must fail").raw_os_error()
}

fn path(bytes: &[u8]) -> TreePath {
    TreePath::parse(bytes).unwrap()
}

/// A real root with a handle on it.
struct Tree {
    vfs: UnixVfs,
    root: UnixDir,
    place: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let vfs = UnixVfs::new(place.path().canonicalize().unwrap());
        let root = vfs.root().unwrap();
        Self { vfs, root, place }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn stat(&self, name: &str) -> Meta {
        self.vfs.stat(&self.root, name.as_bytes()).unwrap().unwrap()
    }

    fn open(&self, name: &str) -> io::Result<UnixFile> {
        self.vfs.open_file(&self.root, name.as_bytes())
    }

    /// The same root, as where openat2 is forbidden.
    fn stepwise(&self) -> UnixVfs {
        let vfs = UnixVfs::new(self.vfs.root.clone());
        vfs.stepwise.store(true, Ordering::Relaxed);
        vfs
    }
}

/// A mount that goes with the test, also with a failed one.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: &Path) -> Self {
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).unwrap();
        Self(at.into())
    }

    fn bind(from: &Path, at: &Path) -> Self {
        mount_bind(from, at).unwrap();
        Self(at.into())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

/// Whether this process may mount; says so where it may not.
fn may_mount() -> bool {
    let caps = rustix::thread::capabilities(None).unwrap().effective;
    let may = caps.contains(rustix::thread::CapabilitySet::SYS_ADMIN);
    if !may {
        println!("skipped: needs CAP_SYS_ADMIN to mount");
    }
    may
}

/// Runs work as nobody, on a thread of its own; false where this process may not change its user.
fn as_nobody(work: impl FnOnce() + Send) -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to become another user");
        return false;
    }
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            work();
        });
        worker.join().unwrap();
    });
    true
}

#[test]
fn keeps_the_contract() {
    let tree = Tree::new();
    contract(&tree.vfs);
    assert!(!tree.vfs.stepwise.load(Ordering::Relaxed) || openat2(tree.root.fd.as_fd(), b".", DIR_FLAGS).is_err());
}

#[test]
fn keeps_the_contract_without_openat2() {
    contract(&Tree::new().stepwise());
}

#[test]
fn keeps_the_contract_as_nobody() {
    let tree = Tree::new();
    std::os::unix::fs::chown(tree.place.path(), Some(NOBODY), Some(NOBODY)).ok();
    as_nobody(|| {
        assert!(!tree.vfs.may_chown());
        contract(&tree.vfs);
        contract(&tree.stepwise());
    });
}

#[test]
fn keeps_the_contract_on_tmpfs() {
    if !may_mount() {
        return;
    }
    let tree = Tree::new();
    let _mount = Mount::tmpfs(tree.place.path());
    contract(&tree.vfs);
}

#[test]
fn finds_out_that_openat2_is_forbidden() {
    for number in [libc::EPERM, libc::ENOSYS] {
        let tree = Tree::new();
        let worker = std::thread::spawn(move || {
            forbid_call(libc::SYS_openat2, number).unwrap();
            assert_eq!(openat2(tree.root.fd.as_fd(), b".", DIR_FLAGS).err(), Some(Errno::from_raw_os_error(number)));
            contract(&tree.vfs);
            assert!(tree.vfs.stepwise.load(Ordering::Relaxed));
        });
        worker.join().unwrap();
    }
}

#[test]
fn names_a_finished_file_through_proc_too() {
    let tree = Tree::new();
    std::os::unix::fs::chown(tree.place.path(), Some(NOBODY), Some(NOBODY)).ok();
    let name_one = |name: &[u8]| {
        let file = tree.vfs.finish_temp(tree.vfs.create_temp(&tree.root).unwrap()).unwrap();
        link_through_proc(&file.0, &tree.root, name).unwrap();
        assert_eq!(link_through_proc(&file.0, &tree.root, name), Err(Errno::EXIST));
    };
    name_one(b"as we are");
    as_nobody(|| name_one(b"as nobody"));
    assert_eq!(tree.stat("as we are").kind, Kind::File);
}

#[test]
fn leaves_access_times_alone() {
    let tree = Tree::new();
    fs::write(tree.at("f"), "content").unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(86_400);
    File::open(tree.at("f")).unwrap().set_times(fs::FileTimes::new().set_accessed(old)).unwrap();
    let file = tree.open("f").unwrap();
    assert_eq!(tree.vfs.read_at(&file, 0, &mut [0; 7]).unwrap(), 7);
    let set = SetAttributes { mtime: Some(Time::new(1, 1)), ..SetAttributes::default() };
    tree.vfs.set_file_attributes(&file, &set).unwrap();
    assert_eq!(fs::metadata(tree.at("f")).unwrap().accessed().unwrap(), old);
}

#[test]
fn a_swapped_root_is_no_directory() {
    let place = tempfile::tempdir().unwrap();
    let (real, link) = (place.path().join("real"), place.path().join("link"));
    fs::create_dir(&real).unwrap();
    symlink(&real, &link).unwrap();
    for path in [link.clone(), link.join(""), link.join(".")] {
        let vfs = UnixVfs::new(path);
        assert_eq!(number(vfs.identity()), Some(libc::ENOTDIR));
        assert_eq!(number(vfs.root()), Some(libc::ENOTDIR));
    }
    fs::write(place.path().join("file"), "").unwrap();
    assert_eq!(number(UnixVfs::new(place.path().join("file")).identity()), Some(libc::ENOTDIR));
    assert_eq!(number(UnixVfs::new(place.path().join("none")).identity()), Some(libc::ENOENT));

    let vfs = UnixVfs::new(real.clone());
    let before = vfs.identity().unwrap();
    fs::rename(&real, place.path().join("away")).unwrap();
    fs::create_dir(&real).unwrap();
    assert_ne!(vfs.identity().unwrap().inode, before.inode);
}

#[test]
fn reads_a_marker_of_bounded_size_and_no_other_file() {
    let tree = Tree::new();
    let marker = || tree.vfs.identity().map(|identity| identity.marker);
    fs::create_dir(tree.at(".pleach")).unwrap();
    assert_eq!(marker().unwrap(), None);
    fs::write(tree.at(".pleach/root"), vec![b'm'; 10_000]).unwrap();
    assert_eq!(marker().unwrap().unwrap().len(), MARKER_BYTES_MAX);
    fs::rename(tree.at(".pleach/root"), tree.at("elsewhere")).unwrap();
    symlink("../elsewhere", tree.at(".pleach/root")).unwrap();
    assert_eq!(number(marker()), Some(libc::ELOOP));
    fs::remove_file(tree.at(".pleach/root")).unwrap();
    fs::create_dir(tree.at(".pleach/root")).unwrap();
    assert_eq!(number(marker()), Some(libc::EINVAL));
}

#[test]
fn opens_paths_longer_than_the_kernel_takes() {
    let tree = Tree::new();
    let mut names = Vec::new();
    let mut dir = tree.vfs.root().unwrap();
    for i in 0..40 {
        let name = format!("{i:02}{}", "d".repeat(248));
        tree.vfs.create_dir(&dir, name.as_bytes(), 0o755).unwrap();
        dir = tree.vfs.open_dir(&dir, name.as_bytes()).unwrap();
        names.push(name);
    }
    let deep = path(names.join("/").as_bytes());
    assert!(deep.as_bytes().len() > 2 * CALL_PATH_BYTES_MAX);
    let inode = tree.vfs.stat_dir(&dir).unwrap().inode;
    for vfs in [&tree.vfs, &tree.stepwise()] {
        let opened = vfs.open_path(&tree.root, &deep).unwrap();
        assert_eq!(vfs.stat_dir(&opened).unwrap().inode, inode);
        let missing = deep.join(b"none").unwrap();
        assert_eq!(number(vfs.open_path(&tree.root, &missing)), Some(libc::ENOENT));
    }
    // A link on the way, in the first piece.
    let first = names[0].as_bytes();
    tree.vfs.rename(&tree.root, first, &tree.root, b"moved", RenameMode::NoReplace).unwrap();
    symlink("moved", tree.at(&names[0])).unwrap();
    assert_eq!(number(tree.vfs.open_path(&tree.root, &deep)), Some(libc::ELOOP));
    assert_eq!(number(tree.stepwise().open_path(&tree.root, &deep)), Some(libc::ENOTDIR));
    // The lengths around the bound.
    for length in CALL_PATH_BYTES_MAX - 1..=CALL_PATH_BYTES_MAX + 2 {
        let mut long = b"x/".repeat(CALL_PATH_BYTES_MAX / 2 - 1);
        long.resize(length, b'x');
        assert_eq!(number(tree.vfs.open_path(&tree.root, &path(&long))), Some(libc::ENOENT), "{length}");
    }
}

#[test]
fn special_files_are_stated_and_never_opened() {
    let tree = Tree::new();
    rustix::fs::mknodat(&tree.root.fd, "fifo", FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.at("socket")).unwrap();
    for name in ["fifo", "socket"] {
        assert_eq!(tree.stat(name).kind, Kind::Special);
        assert_eq!(number(tree.open(name)), Some(libc::EINVAL));
        let set = SetAttributes { mode: Some(0o777), ..SetAttributes::default() };
        assert_eq!(number(tree.vfs.set_attributes(&tree.root, name.as_bytes(), &set)), Some(libc::EINVAL));
    }
    let kinds: Vec<_> = tree.vfs.list(&tree.root).unwrap().into_iter().filter_map(|name| name.kind).collect();
    assert!(kinds.iter().all(|kind| *kind == Kind::Special));
}

#[test]
fn stat_agrees_with_the_standard_library() {
    let tree = Tree::new();
    fs::write(tree.at("a"), "content").unwrap();
    fs::hard_link(tree.at("a"), tree.at("b")).unwrap();
    let (ours, std) = (tree.stat("b"), fs::metadata(tree.at("b")).unwrap());
    assert_eq!((ours.inode, ours.links, ours.size), (std.ino(), 2, 7));
    assert_eq!((ours.uid, ours.gid, ours.mode), (std.uid(), std.gid(), std.mode() & 0o7777));
    assert_eq!((ours.mtime.secs, i64::from(ours.mtime.nanos)), (std.mtime(), std.mtime_nsec()));
    assert_eq!((ours.ctime.secs, i64::from(ours.ctime.nanos)), (std.ctime(), std.ctime_nsec()));
    if let Ok(born) = std.created() {
        let born = born.duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!((ours.btime.secs.unsigned_abs(), ours.btime.nanos), (born.as_secs(), born.subsec_nanos()));
    }
}

#[test]
fn refuses_values_that_the_kernel_reads_otherwise() {
    let tree = Tree::new();
    fs::write(tree.at("f"), "").unwrap();
    let (file, before) = (tree.open("f").unwrap(), tree.stat("f"));
    let time = |nanos| SetAttributes { mtime: Some(Time::new(1, nanos)), ..SetAttributes::default() };
    let owner = |owner| SetAttributes { owner: Some(owner), ..SetAttributes::default() };
    let mode = SetAttributes { mode: Some(0o100_644), ..SetAttributes::default() };
    let (now, omit) = (0x3fff_ffff, 0x3fff_fffe);
    for set in [time(now), time(omit), time(1_000_000_000), owner((u32::MAX, 0)), owner((0, u32::MAX)), mode] {
        assert_eq!(number(tree.vfs.set_file_attributes(&file, &set)), Some(libc::EINVAL), "{set:?}");
    }
    assert_eq!(tree.stat("f"), before);
}

#[test]
fn sets_a_directory_that_may_not_be_read() {
    let tree = Tree::new();
    std::os::unix::fs::chown(tree.place.path(), Some(NOBODY), Some(NOBODY)).ok();
    as_nobody(|| {
        tree.vfs.create_dir(&tree.root, b"closed", 0).unwrap();
        assert_eq!(number(tree.vfs.open_dir(&tree.root, b"closed")), Some(libc::EACCES));
        let set = SetAttributes { mode: Some(0o311), mtime: Some(Time::new(5, 6)), owner: None };
        tree.vfs.set_attributes(&tree.root, b"closed", &set).unwrap();
        let closed = tree.stat("closed");
        assert_eq!((closed.mode, closed.mtime), (0o311, Time::new(5, 6)));
        // A directory on the way needs no permission to read.
        fs::create_dir(tree.at("closed/in")).unwrap();
        tree.vfs.open_path(&tree.root, &path(b"closed/in")).unwrap();
        tree.stepwise().open_path(&tree.root, &path(b"closed/in")).unwrap();
    });
}

#[test]
fn new_files_take_the_group_of_a_setgid_directory() {
    let tree = Tree::new();
    if !tree.vfs.may_chown() {
        println!("skipped: needs CAP_CHOWN");
        return;
    }
    let set = SetAttributes { owner: Some((0, 4242)), mode: Some(0o2755), mtime: None };
    tree.vfs.create_dir(&tree.root, b"shared", 0o755).unwrap();
    tree.vfs.set_attributes(&tree.root, b"shared", &set).unwrap();
    let shared = tree.vfs.open_dir(&tree.root, b"shared").unwrap();
    assert_eq!(tree.vfs.stat_file(&tree.vfs.create_temp(&shared).unwrap()).unwrap().gid, 4242);
    tree.vfs.create_dir(&shared, b"plain", 0o755).unwrap();
    let plain = tree.vfs.stat(&shared, b"plain").unwrap().unwrap();
    assert_eq!((plain.gid, plain.mode), (4242, 0o755), "the group is inherited, the bit only where asked");
}

#[test]
fn a_lease_sees_writers_and_mappings() {
    let tree = Tree::new();
    fs::write(tree.at("f"), "content").unwrap();
    let file = tree.open("f").unwrap();
    assert_eq!(tree.vfs.writers(&file), Writers::None);
    let reader = File::open(tree.at("f")).unwrap();
    assert_eq!(tree.vfs.writers(&file), Writers::None);

    let writer = File::options().read(true).write(true).open(tree.at("f")).unwrap();
    assert_eq!(tree.vfs.writers(&file), Writers::Some);
    assert_eq!(tree.vfs.with_lease(&file, |writers| writers), Writers::Some);
    let page = SharedPage::map(&writer).unwrap();
    drop((reader, writer));
    assert_eq!(tree.vfs.writers(&file), Writers::Some, "mapped writable, descriptor closed");
    drop(page);
    assert_eq!(tree.vfs.writers(&file), Writers::None);
}

#[test]
fn a_lease_holds_writers_off_and_its_signal_is_harmless() {
    let tree = Tree::new();
    fs::write(tree.at("f"), "content").unwrap();
    let file = tree.open("f").unwrap();
    let write = || File::options().write(true).custom_flags(libc::O_NONBLOCK).open(tree.at("f"));
    let held = tree.vfs.with_lease(&file, |writers| (writers, number(write())));
    assert_eq!(held, (Writers::None, Some(libc::EAGAIN)), "and SIGIO did not end the process");
    drop(write().unwrap());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        tree.vfs.with_lease(&file, |_| panic!("work failed"));
    }));
    assert!(panicked.is_err());
    drop(write().unwrap());
}

#[test]
fn a_lease_that_may_not_be_had_is_unknown() {
    let tree = Tree::new();
    fs::set_permissions(tree.place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(tree.at("f"), "content").unwrap();
    as_nobody(|| {
        // Not the owner's: no lease, and opened without O_NOATIME.
        let file = tree.open("f").unwrap();
        assert_eq!(tree.vfs.writers(&file), Writers::Unknown);
        assert_eq!(tree.vfs.with_lease(&file, |writers| writers), Writers::Unknown);
    });
}

#[test]
fn an_oplock_makes_a_file_busy() {
    let tree = Tree::new();
    fs::write(tree.at("f"), "content").unwrap();
    let holder = File::options().read(true).write(true).open(tree.at("f")).unwrap();
    take_write_lease(&holder).unwrap();
    assert_eq!(number(tree.open("f")), Some(libc::EAGAIN));
    drop(holder);
    tree.open("f").unwrap();
}

#[test]
fn after_a_write_back_a_store_through_a_mapping_shows() {
    let tree = Tree::new();
    let kind = rustix::fs::fstatfs(&tree.root.fd).unwrap().f_type;
    if ![0xef53, 0x5846_5342, 0x9123_683e].contains(&kind) {
        println!("skipped: not on ext4, XFS or Btrfs");
        return;
    }
    fs::write(tree.at("f"), "content").unwrap();
    let writer = File::options().read(true).write(true).open(tree.at("f")).unwrap();
    let page = SharedPage::map(&writer).unwrap();
    let file = tree.open("f").unwrap();
    page.store(b'1');
    let dirty = tree.vfs.stat_file(&file).unwrap();
    tree.vfs.write_back(&file).unwrap();
    page.store(b'2');
    assert_ne!(tree.vfs.stat_file(&file).unwrap().ctime, dirty.ctime);
}

/// Checks that a mount at `m`, holding `inside/`, is seen and not entered.
fn assert_not_entered(tree: &Tree) {
    assert!(tree.stat("m").mount_point);
    for vfs in [&tree.vfs, &tree.stepwise()] {
        assert_eq!(number(vfs.open_path(&tree.root, &path(b"m"))), Some(libc::EXDEV));
        assert_eq!(number(vfs.open_path(&tree.root, &path(b"m/inside"))), Some(libc::EXDEV));
        assert_eq!(number(vfs.open_dir(&tree.root, b"m")), Some(libc::EXDEV));
        let mode = SetAttributes { mode: Some(0o700), ..SetAttributes::default() };
        assert_eq!(number(vfs.set_attributes(&tree.root, b"m", &mode)), Some(libc::EXDEV));
        let moved = vfs.rename(&tree.root, b"m", &tree.root, b"n", RenameMode::NoReplace);
        assert_eq!(number(moved), Some(libc::EBUSY));
        assert_eq!(number(vfs.remove_dir(&tree.root, b"m")), Some(libc::EBUSY));
    }
}

#[test]
fn a_mount_inside_is_seen_and_not_entered() {
    if !may_mount() {
        return;
    }
    let tree = Tree::new();
    fs::create_dir_all(tree.at("m/inside")).unwrap();
    fs::create_dir_all(tree.at("other/inside")).unwrap();
    let early = tree.vfs.open_dir(&tree.root, b"m").unwrap();
    let beneath = tree.vfs.stat_dir(&early).unwrap();
    assert!(!tree.stat("m").mount_point);
    {
        let _mount = Mount::tmpfs(&tree.at("m"));
        fs::create_dir(tree.at("m/inside")).unwrap();
        assert_not_entered(&tree);
        assert_eq!(tree.vfs.stat_dir(&early).unwrap(), beneath, "a handle stays below what is mounted over it");
    }
    assert_eq!(tree.stat("m"), beneath);
    {
        // The same device: only the mount tells.
        let _mount = Mount::bind(&tree.at("other"), &tree.at("m"));
        assert_eq!(tree.stat("m").inode, tree.stat("other").inode);
        assert_not_entered(&tree);
    }
    assert_eq!(tree.stat("m"), beneath);
}

#[test]
fn a_file_mounted_over_a_file_is_not_opened() {
    if !may_mount() {
        return;
    }
    let tree = Tree::new();
    fs::write(tree.at("f"), "mine").unwrap();
    fs::write(tree.at("other"), "not mine").unwrap();
    let _mount = Mount::bind(&tree.at("other"), &tree.at("f"));
    assert!(tree.stat("f").mount_point);
    assert_eq!(number(tree.open("f")), Some(libc::EXDEV));
}

#[test]
fn the_identity_changes_with_the_mount() {
    if !may_mount() {
        return;
    }
    let tree = Tree::new();
    let bare = tree.vfs.identity().unwrap();
    let first = {
        let _mount = Mount::tmpfs(tree.place.path());
        let root = tree.vfs.root().unwrap();
        assert!(!tree.vfs.stat_dir(&root).unwrap().mount_point, "the root itself is no hole in the tree");
        tree.vfs.create_dir(&root, b"d", 0o755).unwrap();
        tree.vfs.open_dir(&root, b"d").unwrap();
        tree.vfs.identity().unwrap()
    };
    assert_ne!((first.mount, first.inode, first.device), (bare.mount, bare.inode, bare.device));
    assert_eq!(tree.vfs.identity().unwrap(), bare);
    let second = {
        let _mount = Mount::tmpfs(tree.place.path());
        tree.vfs.identity().unwrap()
    };
    let unique = rustix::fs::statx(&tree.root.fd, c"", AtFlags::EMPTY_PATH, MNT_ID_UNIQUE).unwrap();
    let unique = unique.stx_mask & MNT_ID_UNIQUE.bits() != 0;
    assert!(first.mount != second.mount || !unique, "{first:?} {second:?}");
    assert_ne!(first, second);
    // A bind mount of the directory onto itself: all the same but the mount.
    let _mount = Mount::bind(tree.place.path(), tree.place.path());
    let bound = tree.vfs.identity().unwrap();
    assert_ne!(bound.mount, bare.mount);
    assert_eq!(RootIdentity { mount: bare.mount, ..bound }, bare);
}

#[test]
fn an_idle_root_can_be_unmounted() {
    if !may_mount() {
        return;
    }
    let tree = Tree::new();
    let mounted = std::mem::ManuallyDrop::new(Mount::tmpfs(tree.place.path()));
    let root = tree.vfs.root().unwrap();
    tree.vfs.identity().unwrap();
    assert_eq!(unmount(&mounted.0, UnmountFlags::empty()), Err(Errno::BUSY));
    drop(root);
    unmount(&mounted.0, UnmountFlags::empty()).unwrap();
}
