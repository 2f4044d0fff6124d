//! The promises of [`Vfs`] that the real and the modelled twin share, as one test that both run.
//!
//! What only a kernel can show (mounts, mappings, leases of other processes) is tested beside the
//! real twin, what only a crash can show beside the modelled one. Nothing here knows which it runs on.
#![allow(clippy::unwrap_used, reason = "a test, compiled without cfg(test) so that other crates' twins can run it")]

use std::io;

use pleach_protocol::path::{PRIVATE_NAME, TreePath};
use pleach_protocol::time::Time;

use super::{Kind, Meta, RenameMode, SetAttributes, Vfs, Writers};

/// A time that no clock gives by accident, with nanoseconds that must survive.
const PAST: Time = Time::new(1_234_567_890, 123_456_789);

/// Runs every promise against an empty, writable root with local semantics; the root is empty again afterwards.
///
/// # Panics
/// Where a promise is broken; that is its purpose.
pub fn contract<V: Vfs>(vfs: &V) {
    let root = vfs.root().unwrap();
    assert!(vfs.list(&root).unwrap().is_empty(), "the contract wants an empty root");
    for (name, part) in [
        ("identity", identity as fn(&V, &V::Dir)),
        ("temp", temp),
        ("temp_names", temp_names),
        ("names", names),
        ("stamps", stamps),
        ("attributes", attributes),
        ("owners", owners),
        ("dirs", dirs),
        ("handles", handles),
        ("paths", paths),
        ("symlinks", symlinks),
        ("rename_noreplace", rename_noreplace),
        ("rename_exchange", rename_exchange),
        ("remove", remove),
        ("leases", leases),
        ("sync", sync),
    ] {
        vfs.create_dir(&root, name.as_bytes(), 0o755).unwrap();
        let dir = vfs.open_dir(&root, name.as_bytes()).unwrap();
        part(vfs, &dir);
        clear(vfs, &dir);
        vfs.remove_dir(&root, name.as_bytes()).unwrap();
    }
    assert!(vfs.list(&root).unwrap().is_empty());
}

/// The error number of what must fail.
fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().expect("must fail").raw_os_error().expect("carries the kernel's number")
}

fn meta<V: Vfs>(vfs: &V, dir: &V::Dir, name: &[u8]) -> Meta {
    vfs.stat(dir, name).unwrap().expect("the name is there")
}

/// Builds a file as apply does and gives it its name.
fn put<V: Vfs>(vfs: &V, dir: &V::Dir, name: &[u8], data: &[u8]) {
    let file = vfs.create_temp(dir).unwrap();
    vfs.write_at(&file, 0, data).unwrap();
    let file = vfs.finish_temp(file).unwrap();
    vfs.link_temp(&file, dir, name).unwrap();
}

fn content<V: Vfs>(vfs: &V, dir: &V::Dir, name: &[u8]) -> Vec<u8> {
    read_all(vfs, &vfs.open_file(dir, name).unwrap())
}

/// Reads in small pieces, so that offsets matter.
fn read_all<V: Vfs>(vfs: &V, file: &V::File) -> Vec<u8> {
    let mut all = Vec::new();
    let mut piece = [0; 7];
    loop {
        let count = vfs.read_at(file, all.len() as u64, &mut piece).unwrap();
        if count == 0 {
            return all;
        }
        all.extend_from_slice(&piece[..count]);
    }
}

/// Sorted names of a directory.
fn listed<V: Vfs>(vfs: &V, dir: &V::Dir) -> Vec<Vec<u8>> {
    let mut names: Vec<_> = vfs.list(dir).unwrap().into_iter().map(|n| n.name).collect();
    names.sort();
    names
}

fn clear<V: Vfs>(vfs: &V, dir: &V::Dir) {
    for name in listed(vfs, dir) {
        if meta(vfs, dir, &name).kind == Kind::Dir {
            clear(vfs, &vfs.open_dir(dir, &name).unwrap());
            vfs.remove_dir(dir, &name).unwrap();
        } else {
            vfs.remove_file(dir, &name).unwrap();
        }
    }
}

fn mode(mode: u32) -> SetAttributes {
    SetAttributes { mode: Some(mode), ..SetAttributes::default() }
}

fn mtime(mtime: Time) -> SetAttributes {
    SetAttributes { mtime: Some(mtime), ..SetAttributes::default() }
}

fn path(bytes: &[u8]) -> TreePath {
    TreePath::parse(bytes).unwrap()
}

/// The identity is stable, names the root's inode, and carries the marker once there is one.
fn identity<V: Vfs>(vfs: &V, _dir: &V::Dir) {
    let root = vfs.root().unwrap();
    let before = vfs.identity().unwrap();
    assert_eq!(before.marker, None);
    assert_eq!(before.inode, vfs.stat_dir(&root).unwrap().inode);
    assert_eq!(before, vfs.identity().unwrap());

    vfs.create_dir(&root, PRIVATE_NAME, 0o700).unwrap();
    let private = vfs.open_dir(&root, PRIVATE_NAME).unwrap();
    assert_eq!(vfs.identity().unwrap(), before);
    put(vfs, &private, b"root", b"who I am\n");
    let with_marker = vfs.identity().unwrap();
    assert_eq!(with_marker.marker.as_deref(), Some(&b"who I am\n"[..]));
    assert_eq!(super::RootIdentity { marker: None, ..with_marker }, before);

    let _: bool = vfs.may_chown();
    let _: bool = vfs.coarse_stamps(&private).unwrap();
    assert_eq!(listed(vfs, &private), [b"root".to_vec()]);
    clear(vfs, &private);
    vfs.remove_dir(&root, PRIVATE_NAME).unwrap();
}

/// A nameless file: written at offsets, read back, finished, then without a writer.
fn temp<V: Vfs>(vfs: &V, dir: &V::Dir) {
    let file = vfs.create_temp(dir).unwrap();
    assert!(vfs.list(dir).unwrap().is_empty());
    vfs.write_at(&file, 0, b"hello").unwrap();
    vfs.write_at(&file, 8, b"there").unwrap();
    vfs.write_at(&file, 1, b"E").unwrap();
    vfs.write_at(&file, 40, b"").unwrap();
    assert_eq!(read_all(vfs, &file), b"hEllo\0\0\0there");
    let open = vfs.stat_file(&file).unwrap();
    assert_eq!((open.kind, open.mode, open.size, open.links), (Kind::File, 0o600, 13, 0));

    let file = vfs.finish_temp(file).unwrap();
    assert_eq!(vfs.stat_file(&file).unwrap().inode, open.inode);
    assert_eq!(errno(vfs.write_at(&file, 0, b"late")), libc::EBADF);
    assert_eq!(read_all(vfs, &file), b"hEllo\0\0\0there");
    assert_eq!(vfs.read_at(&file, 13, &mut [0; 4]).unwrap(), 0);
    assert_eq!(vfs.read_at(&file, 1 << 30, &mut [0; 4]).unwrap(), 0);
    assert_eq!(vfs.read_at(&file, 0, &mut []).unwrap(), 0);
    vfs.sync_data(&file).unwrap();
    vfs.set_file_attributes(&file, &mode(0o640)).unwrap();
    assert!(vfs.list(dir).unwrap().is_empty());
}

/// The first name: free or EEXIST, in the directory where it was made or another.
fn temp_names<V: Vfs>(vfs: &V, dir: &V::Dir) {
    vfs.create_dir(dir, b"other", 0o755).unwrap();
    let other = vfs.open_dir(dir, b"other").unwrap();
    put(vfs, dir, b"taken", b"old");
    vfs.create_symlink(dir, b"link", b"nowhere").unwrap();

    let file = vfs.create_temp(dir).unwrap();
    vfs.write_at(&file, 0, b"new").unwrap();
    vfs.set_file_attributes(&file, &SetAttributes { owner: None, mode: Some(0o644), mtime: Some(PAST) }).unwrap();
    let file = vfs.finish_temp(file).unwrap();
    for name in [&b"taken"[..], b"link", b"other"] {
        assert_eq!(errno(vfs.link_temp(&file, dir, name)), libc::EEXIST);
    }
    assert_eq!(content(vfs, dir, b"taken"), b"old");
    vfs.link_temp(&file, &other, b"free").unwrap();
    assert_eq!(content(vfs, &other, b"free"), b"new");

    let named = meta(vfs, &other, b"free");
    assert_eq!(named, vfs.stat_file(&file).unwrap());
    assert_eq!((named.mode, named.mtime, named.links, named.mount_point), (0o644, PAST, 1, false));
    assert_eq!(vfs.stat_file(&vfs.open_file(&other, b"free").unwrap()).unwrap(), named);
    vfs.sync_data(&file).unwrap();

    // A mode that forbids reading, set before the end.
    let file = vfs.create_temp(dir).unwrap();
    vfs.write_at(&file, 0, b"closed").unwrap();
    vfs.set_file_attributes(&file, &mode(0o4200)).unwrap();
    let file = vfs.finish_temp(file).unwrap();
    assert_eq!((read_all(vfs, &file), vfs.stat_file(&file).unwrap().mode), (b"closed".to_vec(), 0o4200));
}

/// Names are bytes: anything but NUL and the slash, up to 255 of them; what is no name is refused.
fn names<V: Vfs>(vfs: &V, dir: &V::Dir) {
    let long = [b'n'; 255];
    let strange: [&[u8]; 6] = [b"line\nbreak", b"\xff\xfe", b" ", b"...", b"-rf", &long];
    for name in strange {
        put(vfs, dir, name, name);
        assert_eq!(content(vfs, dir, name), name);
    }
    let mut expected = strange.map(<[u8]>::to_vec).to_vec();
    expected.sort();
    assert_eq!(listed(vfs, dir), expected);

    put(vfs, dir, b"file", b"");
    let file = vfs.open_file(dir, b"file").unwrap();
    let too_long = [b'n'; 256];
    let wrong: [(&[u8], i32); 7] = [
        (b"", libc::EINVAL),
        (b".", libc::EINVAL),
        (b"..", libc::EINVAL),
        (b"a/b", libc::EINVAL),
        (b"/", libc::EINVAL),
        (b"a\0b", libc::EINVAL),
        (&too_long, libc::ENAMETOOLONG),
    ];
    for (name, number) in wrong {
        let no_replace = RenameMode::NoReplace;
        assert_eq!(errno(vfs.stat(dir, name)), number, "{name:?}");
        assert_eq!(errno(vfs.open_dir(dir, name)), number, "{name:?}");
        assert_eq!(errno(vfs.open_file(dir, name)), number, "{name:?}");
        assert_eq!(errno(vfs.read_link(dir, name)), number, "{name:?}");
        assert_eq!(errno(vfs.link_temp(&file, dir, name)), number, "{name:?}");
        assert_eq!(errno(vfs.set_attributes(dir, name, &mode(0o700))), number, "{name:?}");
        assert_eq!(errno(vfs.create_dir(dir, name, 0o700)), number, "{name:?}");
        assert_eq!(errno(vfs.create_symlink(dir, name, b"x")), number, "{name:?}");
        assert_eq!(errno(vfs.rename(dir, name, dir, b"x", no_replace)), number, "{name:?}");
        assert_eq!(errno(vfs.rename(dir, b"file", dir, name, no_replace)), number, "{name:?}");
        assert_eq!(errno(vfs.remove_file(dir, name)), number, "{name:?}");
        assert_eq!(errno(vfs.remove_dir(dir, name)), number, "{name:?}");
    }
}

/// A change raises the change time; writing raises the content time; a set content time stays to the nanosecond.
fn stamps<V: Vfs>(vfs: &V, dir: &V::Dir) {
    let coarse = vfs.coarse_stamps(dir).unwrap();
    let rises = |before: Time, after: Time| {
        assert!(after > before || (coarse && after == before), "{before:?} then {after:?}");
    };
    let file = vfs.create_temp(dir).unwrap();
    let s0 = vfs.stat_file(&file).unwrap();
    vfs.write_at(&file, 0, b"1").unwrap();
    let s1 = vfs.stat_file(&file).unwrap();
    rises(s0.ctime, s1.ctime);
    rises(s0.mtime, s1.mtime);
    vfs.set_file_attributes(&file, &mtime(PAST)).unwrap();
    let s2 = vfs.stat_file(&file).unwrap();
    rises(s1.ctime, s2.ctime);
    assert_eq!(s2.mtime, PAST);
    let file = vfs.finish_temp(file).unwrap();
    vfs.link_temp(&file, dir, b"f").unwrap();
    let s3 = vfs.stat_file(&file).unwrap();
    rises(s2.ctime, s3.ctime);
    vfs.set_file_attributes(&file, &mode(0o400)).unwrap();
    let s4 = vfs.stat_file(&file).unwrap();
    rises(s3.ctime, s4.ctime);
    vfs.rename(dir, b"f", dir, b"g", RenameMode::NoReplace).unwrap();
    let s5 = meta(vfs, dir, b"g");
    rises(s4.ctime, s5.ctime);
    assert_eq!((s5.mtime, s5.mode, s5.inode, s5.btime), (PAST, 0o400, s0.inode, s0.btime));
    assert_eq!(read_all(vfs, &file), b"1");
    assert_eq!(vfs.stat_file(&file).unwrap(), s5, "reading leaves the stamp alone");
}

/// Attributes of files, directories and links; each only where asked.
fn attributes<V: Vfs>(vfs: &V, dir: &V::Dir) {
    put(vfs, dir, b"file", b"x");
    vfs.create_dir(dir, b"dir", 0o755).unwrap();
    vfs.create_symlink(dir, b"link", b"file").unwrap();
    let file = vfs.open_file(dir, b"file").unwrap();
    for bits in [0o7777, 0o4711, 0o2755, 0o1777, 0o644, 0] {
        vfs.set_file_attributes(&file, &mode(bits)).unwrap();
        assert_eq!(vfs.stat_file(&file).unwrap().mode, bits);
        vfs.set_attributes(dir, b"dir", &mode(bits)).unwrap();
        assert_eq!(meta(vfs, dir, b"dir").mode, bits);
    }
    let before = vfs.stat_file(&file).unwrap();
    vfs.set_file_attributes(&file, &SetAttributes::default()).unwrap();
    vfs.set_attributes(dir, b"dir", &SetAttributes::default()).unwrap();
    assert_eq!((vfs.stat_file(&file).unwrap().mode, meta(vfs, dir, b"dir").mode), (0, 0));
    assert_eq!(vfs.stat_file(&file).unwrap().mtime, before.mtime);

    let both = SetAttributes { owner: None, mode: Some(0o750), mtime: Some(PAST) };
    for name in [&b"dir"[..], b"link"] {
        vfs.set_attributes(dir, name, &both).unwrap();
        assert_eq!(meta(vfs, dir, name).mtime, PAST);
    }
    assert_eq!(meta(vfs, dir, b"dir").mode, 0o750);
    assert_eq!(meta(vfs, dir, b"link").mode, 0o777, "a link has no mode of its own");
    let after = vfs.stat_file(&file).unwrap();
    assert_eq!((after.mode, after.mtime), (0, before.mtime), "the link was not followed");

    assert_eq!(errno(vfs.set_attributes(dir, b"none", &both)), libc::ENOENT);
    assert_eq!(errno(vfs.set_attributes(dir, b"file", &both)), libc::EINVAL, "files are set by handle");
}

/// Owners, where this process may give files away; the mode is set after the owner, so setuid survives.
fn owners<V: Vfs>(vfs: &V, dir: &V::Dir) {
    put(vfs, dir, b"file", b"x");
    vfs.create_dir(dir, b"dir", 0o755).unwrap();
    vfs.create_symlink(dir, b"link", b"file").unwrap();
    let file = vfs.open_file(dir, b"file").unwrap();
    let own = vfs.stat_file(&file).unwrap();
    let owner_of = |name| {
        let m = meta(vfs, dir, name);
        (m.uid, m.gid)
    };
    let keep = SetAttributes { owner: Some((own.uid, own.gid)), ..SetAttributes::default() };
    vfs.set_file_attributes(&file, &keep).unwrap();
    vfs.set_attributes(dir, b"link", &keep).unwrap();
    if !vfs.may_chown() {
        return;
    }
    let give = SetAttributes { owner: Some((12_345, 23_456)), mode: Some(0o6755), mtime: Some(PAST) };
    vfs.set_attributes(dir, b"link", &give).unwrap();
    assert_eq!(owner_of(b"link"), (12_345, 23_456));
    assert_eq!(owner_of(b"file"), (own.uid, own.gid), "the link was not followed");
    vfs.set_attributes(dir, b"dir", &give).unwrap();
    vfs.set_file_attributes(&file, &give).unwrap();
    for name in [&b"dir"[..], b"file"] {
        let m = meta(vfs, dir, name);
        assert_eq!((m.uid, m.gid, m.mode, m.mtime), (12_345, 23_456, 0o6755, PAST));
    }
}

/// Directories: exact modes, listings, content times.
fn dirs<V: Vfs>(vfs: &V, dir: &V::Dir) {
    for bits in [0o700, 0o755, 0o777, 0o2775, 0o1777, 0o7777, 0o500, 0] {
        let name = format!("{bits:o}");
        vfs.create_dir(dir, name.as_bytes(), bits).unwrap();
        let m = meta(vfs, dir, name.as_bytes());
        assert_eq!((m.kind, m.mode, m.mount_point), (Kind::Dir, bits, false));
        vfs.remove_dir(dir, name.as_bytes()).unwrap();
    }
    put(vfs, dir, b"file", b"x");
    vfs.create_dir(dir, b"dir", 0o755).unwrap();
    vfs.create_symlink(dir, b"link", b"dir").unwrap();
    for name in [&b"file"[..], b"dir", b"link"] {
        assert_eq!(errno(vfs.create_dir(dir, name, 0o711)), libc::EEXIST);
    }
    assert_eq!(meta(vfs, dir, b"dir").mode, 0o755);

    let listing = vfs.list(dir).unwrap();
    assert_eq!(listing.len(), 3);
    for entry in &listing {
        assert!(entry.kind.is_none_or(|kind| kind == meta(vfs, dir, &entry.name).kind), "{entry:?}");
    }
    assert_eq!(vfs.list(dir).unwrap().len(), 3, "a second listing begins anew");
    let inner = vfs.open_dir(dir, b"dir").unwrap();
    assert!(vfs.list(&inner).unwrap().is_empty());
    assert_eq!(vfs.stat_dir(&inner).unwrap(), meta(vfs, dir, b"dir"));

    vfs.set_attributes(dir, b"dir", &mtime(PAST)).unwrap();
    vfs.rename(dir, b"dir", dir, b"dir2", RenameMode::NoReplace).unwrap();
    assert_eq!(vfs.stat_dir(&inner).unwrap().mtime, PAST, "renaming a directory leaves its own content time");
    put(vfs, &inner, b"new", b"");
    assert!(vfs.stat_dir(&inner).unwrap().mtime > PAST, "a new name is new content");
    vfs.set_attributes(dir, b"dir2", &mtime(PAST)).unwrap();
    vfs.remove_file(&inner, b"new").unwrap();
    assert!(vfs.stat_dir(&inner).unwrap().mtime > PAST);

    let mut many: Vec<_> =
        (0..1500).map(|i| format!("a longer name of a directory entry {i:04}").into_bytes()).collect();
    for name in &many {
        vfs.create_symlink(&inner, name, b"x").unwrap();
    }
    many.sort();
    assert_eq!(listed(vfs, &inner), many);
}

/// A handle goes with the directory, not with its name, and outlives it.
fn handles<V: Vfs>(vfs: &V, dir: &V::Dir) {
    vfs.create_dir(dir, b"a", 0o755).unwrap();
    let handle = vfs.open_dir(dir, b"a").unwrap();
    vfs.rename(dir, b"a", dir, b"b", RenameMode::NoReplace).unwrap();
    put(vfs, &handle, b"file", b"x");
    assert_eq!(content(vfs, &vfs.open_dir(dir, b"b").unwrap(), b"file"), b"x");

    let file = vfs.open_file(&handle, b"file").unwrap();
    vfs.remove_file(&handle, b"file").unwrap();
    assert_eq!(read_all(vfs, &file), b"x");
    assert_eq!(vfs.stat_file(&file).unwrap().links, 0);

    let nameless = vfs.finish_temp(vfs.create_temp(dir).unwrap()).unwrap();
    vfs.remove_dir(dir, b"b").unwrap();
    assert_eq!(vfs.stat(&handle, b"file").unwrap(), None);
    assert_eq!(errno(vfs.create_dir(&handle, b"x", 0o755)), libc::ENOENT);
    assert_eq!(errno(vfs.create_symlink(&handle, b"x", b"y")), libc::ENOENT);
    assert_eq!(errno(vfs.link_temp(&nameless, &handle, b"x")), libc::ENOENT);
}

/// Deep paths; components that are no directory, and links, end the walk.
fn paths<V: Vfs>(vfs: &V, dir: &V::Dir) {
    vfs.create_dir(dir, b"a", 0o755).unwrap();
    let a = vfs.open_dir(dir, b"a").unwrap();
    vfs.create_dir(&a, b"b", 0o755).unwrap();
    let b = vfs.open_dir(&a, b"b").unwrap();
    put(vfs, &b, b"file", b"x");
    vfs.create_symlink(dir, b"link", b"a").unwrap();
    vfs.create_symlink(&a, b"up", b"..").unwrap();
    vfs.create_symlink(&a, b"away", b"/").unwrap();

    let inode = |opened: io::Result<V::Dir>| vfs.stat_dir(&opened.unwrap()).unwrap().inode;
    assert_eq!(inode(vfs.open_path(dir, &path(b"a/b"))), vfs.stat_dir(&b).unwrap().inode);
    assert_eq!(inode(vfs.open_path(&a, &path(b"b"))), vfs.stat_dir(&b).unwrap().inode);
    assert_eq!(inode(vfs.open_path(&b, &TreePath::ROOT)), vfs.stat_dir(&b).unwrap().inode);
    assert_eq!(inode(vfs.root()), vfs.identity().unwrap().inode);

    assert_eq!(errno(vfs.open_path(dir, &path(b"none"))), libc::ENOENT);
    assert_eq!(errno(vfs.open_path(dir, &path(b"a/none/c"))), libc::ENOENT);
    assert_eq!(errno(vfs.open_path(dir, &path(b"a/b/file"))), libc::ENOTDIR);
    assert_eq!(errno(vfs.open_path(dir, &path(b"a/b/file/c"))), libc::ENOTDIR);
    for link in [&b"link"[..], b"link/b", b"a/up", b"a/up/a", b"a/away", b"a/away/etc"] {
        let number = errno(vfs.open_path(dir, &path(link)));
        assert!([libc::ELOOP, libc::ENOTDIR].contains(&number), "{link:?}: {number}");
    }
    assert_eq!(errno(vfs.open_dir(dir, b"none")), libc::ENOENT);
    assert_eq!(errno(vfs.open_dir(&b, b"file")), libc::ENOTDIR);
    assert!([libc::ELOOP, libc::ENOTDIR].contains(&errno(vfs.open_dir(dir, b"link"))));

    assert_eq!(vfs.stat(dir, b"none").unwrap(), None);
    assert_eq!(errno(vfs.open_file(dir, b"none")), libc::ENOENT);
    assert_eq!(errno(vfs.open_file(dir, b"link")), libc::ELOOP);
    assert_eq!(errno(vfs.open_file(dir, b"a")), libc::EINVAL);
}

/// Links are bytes to store, never a way to anywhere.
fn symlinks<V: Vfs>(vfs: &V, dir: &V::Dir) {
    let targets: [&[u8]; 5] = [b"x", b"/etc/passwd", b"../..", b"\xff\n//", &[b't'; 1000]];
    for (i, target) in targets.into_iter().enumerate() {
        let name = i.to_string();
        vfs.create_symlink(dir, name.as_bytes(), target).unwrap();
        assert_eq!(vfs.read_link(dir, name.as_bytes()).unwrap(), target);
        let m = meta(vfs, dir, name.as_bytes());
        assert_eq!((m.kind, m.size, m.links), (Kind::Symlink, target.len() as u64, 1));
        assert_eq!(errno(vfs.create_symlink(dir, name.as_bytes(), b"y")), libc::EEXIST);
    }
    assert_eq!(errno(vfs.create_symlink(dir, b"empty", b"")), libc::ENOENT);
    assert_eq!(errno(vfs.create_symlink(dir, b"nul", b"a\0b")), libc::EINVAL);
    assert_eq!(errno(vfs.create_symlink(dir, b"long", &[b't'; 4096])), libc::ENAMETOOLONG);
    put(vfs, dir, b"file", b"");
    assert_eq!(errno(vfs.read_link(dir, b"file")), libc::EINVAL);
    assert_eq!(errno(vfs.read_link(dir, b"none")), libc::ENOENT);
}

/// A rename keeps the inode and never replaces.
fn rename_noreplace<V: Vfs>(vfs: &V, dir: &V::Dir) {
    let to_free = RenameMode::NoReplace;
    put(vfs, dir, b"a", b"a");
    put(vfs, dir, b"b", b"b");
    vfs.create_dir(dir, b"d", 0o755).unwrap();
    let d = vfs.open_dir(dir, b"d").unwrap();
    vfs.create_symlink(dir, b"l", b"a").unwrap();
    for target in [&b"a"[..], b"b", b"d", b"l"] {
        assert_eq!(errno(vfs.rename(dir, b"a", dir, target, to_free)), libc::EEXIST);
    }
    let inode = meta(vfs, dir, b"a").inode;
    vfs.rename(dir, b"a", &d, b"c", to_free).unwrap();
    assert_eq!(vfs.stat(dir, b"a").unwrap(), None);
    assert_eq!(meta(vfs, &d, b"c").inode, inode);
    assert_eq!(content(vfs, &d, b"c"), b"a");
    vfs.rename(dir, b"l", &d, b"l", to_free).unwrap();
    assert_eq!(vfs.read_link(&d, b"l").unwrap(), b"a");

    assert_eq!(errno(vfs.rename(dir, b"none", dir, b"x", to_free)), libc::ENOENT);
    assert_eq!(errno(vfs.rename(dir, b"d", &d, b"x", to_free)), libc::EINVAL, "not into itself");
    vfs.create_dir(&d, b"e", 0o755).unwrap();
    let e = vfs.open_dir(&d, b"e").unwrap();
    assert_eq!(errno(vfs.rename(dir, b"d", &e, b"x", to_free)), libc::EINVAL);
    vfs.rename(&d, b"e", dir, b"e", to_free).unwrap();
    vfs.rename(dir, b"d", &e, b"d", to_free).unwrap();
    assert_eq!(content(vfs, &vfs.open_path(dir, &path(b"e/d")).unwrap(), b"c"), b"a");
}

/// An exchange swaps two names in one step, whatever their kinds.
fn rename_exchange<V: Vfs>(vfs: &V, dir: &V::Dir) {
    let swap = RenameMode::Exchange;
    put(vfs, dir, b"a", b"a");
    put(vfs, dir, b"b", b"b");
    vfs.create_dir(dir, b"d", 0o755).unwrap();
    let d = vfs.open_dir(dir, b"d").unwrap();
    put(vfs, &d, b"c", b"c");
    let (a, b) = (meta(vfs, dir, b"a").inode, meta(vfs, dir, b"b").inode);
    vfs.rename(dir, b"a", dir, b"b", swap).unwrap();
    assert_eq!((meta(vfs, dir, b"a").inode, meta(vfs, dir, b"b").inode), (b, a));
    assert_eq!((content(vfs, dir, b"a"), content(vfs, dir, b"b")), (b"b".to_vec(), b"a".to_vec()));
    vfs.rename(dir, b"a", &d, b"c", swap).unwrap();
    assert_eq!((content(vfs, dir, b"a"), content(vfs, &d, b"c")), (b"c".to_vec(), b"b".to_vec()));

    let inode = meta(vfs, dir, b"d").inode;
    vfs.rename(dir, b"d", dir, b"a", swap).unwrap();
    assert_eq!((meta(vfs, dir, b"d").kind, meta(vfs, dir, b"a").kind), (Kind::File, Kind::Dir));
    assert_eq!((meta(vfs, dir, b"a").inode, content(vfs, dir, b"d")), (inode, b"c".to_vec()));
    assert_eq!(content(vfs, &vfs.open_dir(dir, b"a").unwrap(), b"c"), b"b");

    assert_eq!(errno(vfs.rename(dir, b"b", dir, b"none", swap)), libc::ENOENT);
    assert_eq!(errno(vfs.rename(dir, b"none", dir, b"b", swap)), libc::ENOENT);
    assert_eq!(errno(vfs.rename(dir, b"a", &d, b"c", swap)), libc::EINVAL, "not with what it holds");
    assert_eq!(errno(vfs.rename(&d, b"c", dir, b"a", swap)), libc::EINVAL);
}

/// Removal takes names, never content that still has one, and never a directory with content.
fn remove<V: Vfs>(vfs: &V, dir: &V::Dir) {
    put(vfs, dir, b"file", b"x");
    vfs.create_dir(dir, b"dir", 0o755).unwrap();
    vfs.create_symlink(dir, b"link", b"dir").unwrap();
    vfs.create_symlink(dir, b"flink", b"file").unwrap();
    let inner = vfs.open_dir(dir, b"dir").unwrap();
    put(vfs, &inner, b"f", b"");

    assert_eq!(errno(vfs.remove_dir(dir, b"dir")), libc::ENOTEMPTY);
    assert_eq!(errno(vfs.remove_dir(dir, b"file")), libc::ENOTDIR);
    assert_eq!(errno(vfs.remove_dir(dir, b"link")), libc::ENOTDIR);
    assert_eq!(errno(vfs.remove_dir(dir, b"none")), libc::ENOENT);
    assert_eq!(errno(vfs.remove_file(dir, b"dir")), libc::EISDIR);
    assert_eq!(errno(vfs.remove_file(dir, b"none")), libc::ENOENT);
    vfs.remove_file(dir, b"flink").unwrap();
    vfs.remove_file(dir, b"link").unwrap();
    assert_eq!(content(vfs, dir, b"file"), b"x");
    vfs.remove_file(&inner, b"f").unwrap();
    vfs.remove_dir(dir, b"dir").unwrap();
    vfs.remove_file(dir, b"file").unwrap();
    assert!(vfs.list(dir).unwrap().is_empty());
}

/// Our own unfinished file has a writer, ourselves; a finished one has none.
fn leases<V: Vfs>(vfs: &V, dir: &V::Dir) {
    let file = vfs.create_temp(dir).unwrap();
    vfs.write_at(&file, 0, b"x").unwrap();
    assert_eq!(vfs.writers(&file), Writers::Some);
    let file = vfs.finish_temp(file).unwrap();
    assert_eq!(vfs.writers(&file), Writers::None);
    vfs.link_temp(&file, dir, b"f").unwrap();
    let reader = vfs.open_file(dir, b"f").unwrap();
    assert_eq!((vfs.writers(&file), vfs.writers(&reader)), (Writers::None, Writers::None));
    let seen = vfs.with_lease(&reader, |writers| (writers, read_all(vfs, &reader)));
    assert_eq!(seen, (Writers::None, b"x".to_vec()));
    assert_eq!(vfs.writers(&reader), Writers::None);
}

/// Everything that makes durable says yes on a healthy disk, also through read-only handles.
fn sync<V: Vfs>(vfs: &V, dir: &V::Dir) {
    let handle = vfs.sync_handle(dir).unwrap();
    let file = vfs.create_temp(dir).unwrap();
    vfs.write_at(&file, 0, b"x").unwrap();
    vfs.sync_data(&file).unwrap();
    let file = vfs.finish_temp(file).unwrap();
    vfs.write_back(&file).unwrap();
    vfs.link_temp(&file, dir, b"f").unwrap();
    vfs.sync_data(&vfs.open_file(dir, b"f").unwrap()).unwrap();
    vfs.sync_dir(dir).unwrap();
    vfs.sync_all(&handle).unwrap();
    assert_eq!(content(vfs, dir, b"f"), b"x");
}
