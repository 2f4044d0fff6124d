//! The model's own promises: what is durable when, what a crash leaves, and how users and faults get in.

use std::io;

use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;

use super::*;
use crate::vfs::contract::contract;
use crate::vfs::{RenameMode, RootIdentity, SetAttributes, Vfs, Writers};

const PAST: Time = Time::new(1_234_567_890, 123_456_789);
const POWER_CUT: CrashKind = CrashKind::Machine { log: Keep::All, data: Data::Lost };

fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().expect("must fail").raw_os_error().expect("carries the kernel's number")
}

fn start() -> (ModelDisk, ModelVfs, ModelUser) {
    let disk = ModelDisk::new();
    (disk.clone(), ModelVfs::new(&disk), disk.user())
}

/// Builds a file with a time of its own, nameless and finished.
fn build(vfs: &ModelVfs, dir: &ModelDir, data: &[u8]) -> io::Result<ModelFile> {
    let file = vfs.create_temp(dir)?;
    vfs.write_at(&file, 0, data)?;
    vfs.set_file_attributes(&file, &SetAttributes { owner: None, mode: Some(0o640), mtime: Some(PAST) })?;
    vfs.finish_temp(file)
}

/// The same, and synced as [`crate::vfs`]'s callers must.
fn build_synced(vfs: &ModelVfs, dir: &ModelDir, data: &[u8]) -> io::Result<ModelFile> {
    let file = build(vfs, dir, data)?;
    vfs.sync_data(&file)?;
    Ok(file)
}

/// A tree with `d/f` and staging, all durable.
fn tree() -> (ModelDisk, ModelVfs, ModelUser) {
    let (disk, vfs, user) = start();
    user.mkdir_all("d").unwrap();
    user.mkdir_all(".pleach/staging").unwrap();
    user.write("d/f", "old").unwrap();
    disk.sync();
    (disk, vfs, user)
}

/// Replaces `d/f` as apply does.
fn replace(vfs: &ModelVfs, synced: bool, data: &[u8]) -> io::Result<()> {
    let root = vfs.root()?;
    let d = vfs.open_dir(&root, b"d")?;
    let staging = vfs.open_dir(&vfs.open_dir(&root, b".pleach")?, b"staging")?;
    let file = if synced { build_synced(vfs, &d, data)? } else { build(vfs, &d, data)? };
    vfs.link_temp(&file, &staging, b"1")?;
    vfs.rename(&staging, b"1", &d, b"f", RenameMode::Exchange)?;
    vfs.sync_dir(&d)
}

#[test]
fn keeps_the_contract() {
    contract(&ModelVfs::new(&ModelDisk::new()));
    let other = ModelDisk::new();
    other.set_coarse_clock(true);
    other.set_may_chown(false);
    other.set_listing_kinds(false);
    other.set_reuse_inodes(false);
    other.set_log_commit_on_fsync(false);
    other.set_exchange_keeps_ctime(true);
    contract(&ModelVfs::new(&other));
}

#[test]
fn renamed_but_unsynced_is_empty_with_our_time_after_a_power_cut() {
    let (disk, vfs, user) = tree();
    replace(&vfs, false, b"new").unwrap();
    assert_eq!(user.read("d/f").unwrap(), b"new");
    disk.restart(POWER_CUT);
    let meta = user.stat("d/f").unwrap();
    assert_eq!((meta.size, meta.mtime, meta.mode), (0, PAST, 0o640));
    assert_eq!(user.read(".pleach/staging/1").unwrap(), b"old");
}

#[test]
fn synced_or_written_back_before_the_rename_is_whole() {
    let (disk, vfs, user) = tree();
    replace(&vfs, true, b"new").unwrap();
    disk.restart(POWER_CUT);
    assert_eq!(user.read("d/f").unwrap(), b"new");

    for (log, size) in [(Keep::All, Some(5)), (Keep::None, None)] {
        let (disk, vfs, user) = start();
        let root = vfs.root().unwrap();
        let file = build(&vfs, &root, b"whole").unwrap();
        vfs.write_back(&file).unwrap();
        vfs.link_temp(&file, &root, b"f").unwrap();
        disk.restart(CrashKind::Machine { log, data: Data::Lost });
        assert_eq!(user.stat("f").ok().map(|meta| meta.size), size);
    }
}

#[test]
fn a_write_after_the_sync_is_lost_alone() {
    let (disk, vfs, user) = tree();
    replace(&vfs, true, b"new").unwrap();
    user.append("d/f", "er").unwrap();
    disk.commit_log();
    disk.restart(POWER_CUT);
    assert_eq!(user.read("d/f").unwrap(), b"new");
    user.write("d/f", "cut first").unwrap();
    disk.restart(POWER_CUT);
    assert_eq!(user.read("d/f").unwrap(), b"", "the truncation was logged, the bytes were not");
}

#[test]
fn a_name_without_a_log_commit_is_lost_with_its_synced_file() {
    for (commits, there) in [(true, true), (false, false)] {
        let (disk, vfs, user) = start();
        disk.set_log_commit_on_fsync(commits);
        let root = vfs.root().unwrap();
        let file = build(&vfs, &root, b"x").unwrap();
        vfs.link_temp(&file, &root, b"f").unwrap();
        vfs.sync_data(&file).unwrap();
        disk.restart(CrashKind::Machine { log: Keep::None, data: Data::Kept });
        assert_eq!(user.exists("f"), there);
    }
    let (disk, vfs, user) = start();
    disk.set_log_commit_on_fsync(false);
    let root = vfs.root().unwrap();
    let file = build_synced(&vfs, &root, b"x").unwrap();
    vfs.link_temp(&file, &root, b"f").unwrap();
    vfs.sync_dir(&root).unwrap();
    disk.restart(CrashKind::Machine { log: Keep::None, data: Data::Lost });
    assert_eq!(user.read("f").unwrap(), b"x");
    assert_eq!((user.stat("f").unwrap().links, user.stat("f").unwrap().mtime), (1, PAST));
}

#[test]
fn a_synced_file_is_not_cut_by_what_the_log_says_of_its_past() {
    for log in [Keep::All, Keep::None] {
        let (disk, vfs, user) = tree();
        disk.set_log_commit_on_fsync(false);
        user.write("d/f", "newer").unwrap();
        user.touch("d/f", PAST).unwrap();
        let d = vfs.open_dir(&vfs.root().unwrap(), b"d").unwrap();
        vfs.sync_data(&vfs.open_file(&d, b"f").unwrap()).unwrap();
        disk.restart(CrashKind::Machine { log, data: Data::Lost });
        assert_eq!((user.read("d/f").unwrap(), user.stat("d/f").unwrap().mtime), (b"newer".to_vec(), PAST));
    }
}

#[test]
fn an_exchange_is_durable_whole_or_not_at_all() {
    let mut outcomes = Vec::new();
    for kept in 0..20 {
        let (disk, vfs, user) = tree();
        let root = vfs.root().unwrap();
        let d = vfs.open_dir(&root, b"d").unwrap();
        let file = build_synced(&vfs, &root, b"new").unwrap();
        vfs.link_temp(&file, &root, b"1").unwrap();
        vfs.sync_dir(&root).unwrap();
        vfs.rename(&root, b"1", &d, b"f", RenameMode::Exchange).unwrap();
        user.write("later", "x").unwrap();
        if kept > disk.log_len() {
            break;
        }
        disk.restart(CrashKind::Machine { log: Keep::First(kept), data: Data::Lost });
        outcomes.push((user.read("1").unwrap(), user.read("d/f").unwrap()));
    }
    assert!(outcomes.len() >= 3);
    let (before, after) = ((b"new".to_vec(), b"old".to_vec()), (b"old".to_vec(), b"new".to_vec()));
    assert_eq!(outcomes[0], before);
    assert!(outcomes[1..].iter().all(|outcome| *outcome == after), "{outcomes:?}");
}

#[test]
fn a_nameless_file_vanishes_in_either_crash() {
    for kind in [CrashKind::Process, POWER_CUT] {
        let (disk, vfs, user) = start();
        let file = build_synced(&vfs, &vfs.root().unwrap(), b"x").unwrap();
        disk.restart(kind);
        assert_eq!(errno(vfs.stat_file(&file)), libc::EIO);
        assert!(user.snapshot(true).is_empty());
        disk.sync();
        assert_eq!(disk.lock().live.inodes.len(), 2, "the two roots are left");
    }
}

#[test]
fn a_killed_process_leaves_the_live_state() {
    let (disk, vfs, user) = tree();
    replace(&vfs, false, b"new").unwrap();
    let open = user.open_writing("d/f").unwrap();
    let unfinished = vfs.create_temp(&vfs.root().unwrap()).unwrap();
    vfs.link_temp(&unfinished, &vfs.root().unwrap(), b"half").unwrap();
    let before = user.snapshot(true);
    let (boot, identity) = (disk.boot(), vfs.identity().unwrap());
    disk.restart(CrashKind::Process);
    assert_eq!(user.snapshot(true), before);
    assert_eq!(errno(vfs.root()), libc::EIO, "the old process is dead");
    let vfs = ModelVfs::new(&disk);
    assert_eq!((disk.boot(), vfs.identity().unwrap()), (boot, identity.clone()));
    let half = vfs.open_file(&vfs.root().unwrap(), b"half").unwrap();
    assert_eq!(vfs.writers(&half), Writers::None, "the kernel closed what the process had open");
    drop(unfinished);
    open.append("!").unwrap();
    assert_eq!(user.read("d/f").unwrap(), b"new!");

    disk.restart(CrashKind::Machine { log: Keep::All, data: Data::Kept });
    assert_eq!(user.read("d/f").unwrap(), b"new!");
    assert_eq!(errno(open.append("?")), libc::EIO, "users lose their files with the machine");
    assert_eq!(disk.boot(), boot + 1);
    assert!(disk.booted() > user.stat("d/f").unwrap().ctime);
    let after = ModelVfs::new(&disk).identity().unwrap();
    assert_ne!(after.mount, identity.mount);
    assert_eq!((after.fsid, after.inode), (identity.fsid, identity.inode));
}

#[test]
fn every_crash_point_leaves_old_or_new_when_synced_and_may_not_otherwise() {
    let calls = {
        let (disk, vfs, _) = tree();
        replace(&vfs, true, b"new").unwrap();
        disk.calls()
    };
    assert_eq!(calls, 7);
    let mut torn = 0;
    for synced in [true, false] {
        for n in 1..=calls {
            for log in [Keep::All, Keep::None, Keep::Prefix(n), Keep::First(2)] {
                for data in [Data::Lost, Data::Torn(n), Data::Kept] {
                    let (disk, vfs, user) = tree();
                    disk.crash_at(n);
                    let done = replace(&vfs, synced, b"new");
                    if synced {
                        assert_eq!(errno(done), libc::EIO);
                        assert!(disk.crashed());
                        assert_eq!((errno(vfs.root()), disk.calls()), (libc::EIO, n));
                    }
                    disk.restart(CrashKind::Machine { log, data });
                    let content = user.read("d/f").unwrap();
                    let whole = content == b"old" || content == b"new";
                    assert!(whole || !synced, "crash at {n}, {log:?}, {data:?}: {content:?}");
                    torn += u32::from(!whole);
                    replace(&ModelVfs::new(&disk), true, b"again").unwrap_or_else(|error| {
                        assert_eq!(error.raw_os_error(), Some(libc::EEXIST), "what was staged may be there still");
                    });
                }
            }
        }
    }
    assert!(torn > 0, "without the sync the crash must hurt");
}

#[test]
fn the_same_seed_gives_the_same_wreck() {
    let wreck = |seed| {
        let (disk, vfs, user) = start();
        let root = vfs.root().unwrap();
        for i in 0..20_u8 {
            let file = build(&vfs, &root, &[i + 1; 4000]).unwrap();
            vfs.link_temp(&file, &root, format!("f{i}").as_bytes()).unwrap();
        }
        disk.restart(CrashKind::Machine { log: Keep::Prefix(seed), data: Data::Torn(seed) });
        user.snapshot(true)
    };
    let wrecks: Vec<_> = (0..8).map(wreck).collect();
    assert!((0..8).zip(&wrecks).all(|(seed, one)| wreck(seed) == *one));
    assert!(wrecks.windows(2).any(|pair| pair[0] != pair[1]));
    let blocks: Vec<_> = wrecks.iter().flat_map(|wreck| wreck.values()).flat_map(|f| f.content.chunks(512)).collect();
    assert!(blocks.iter().all(|block| block.iter().all(|byte| *byte == block[0])), "blocks are written whole");
    assert!(blocks.iter().any(|block| block[0] == 0) && blocks.iter().any(|block| block[0] != 0));
    assert!(wrecks.iter().flat_map(|wreck| wreck.values()).all(|f| f.content.len() == 4000 && f.mtime == PAST));
}

#[test]
fn a_late_writer_writes_into_the_vaulted_inode() {
    let (_disk, vfs, user) = tree();
    let writer = user.open_writing("d/f").unwrap();
    replace(&vfs, true, b"new").unwrap();
    let staging = vfs.open_path(&vfs.root().unwrap(), &TreePath::parse(b"d").unwrap()).unwrap();
    assert_eq!(vfs.writers(&vfs.open_file(&staging, b"f").unwrap()), Writers::None);
    let private = vfs.open_dir(&vfs.root().unwrap(), b".pleach").unwrap();
    let vault = vfs.open_dir(&private, b"staging").unwrap();
    let displaced = vfs.open_file(&vault, b"1").unwrap();
    assert_eq!(vfs.writers(&displaced), Writers::Some);
    writer.append(" and late").unwrap();
    assert_eq!(user.read("d/f").unwrap(), b"new");
    assert_eq!(user.read(".pleach/staging/1").unwrap(), b"old and late");
    drop(writer);
    assert_eq!(vfs.writers(&displaced), Writers::None);
}

#[test]
fn a_store_through_a_mapping_moves_the_stamp_once_a_write_back() {
    let (_disk, vfs, user) = tree();
    let d = vfs.open_dir(&vfs.root().unwrap(), b"d").unwrap();
    let file = vfs.open_file(&d, b"f").unwrap();
    let mapping = user.open_writing("d/f").unwrap();
    let s0 = vfs.stat_file(&file).unwrap();
    mapping.store(0, "A").unwrap();
    let s1 = vfs.stat_file(&file).unwrap();
    assert!(s1.ctime > s0.ctime && s1.mtime > s0.mtime);
    mapping.store(1, "B").unwrap();
    assert_eq!(vfs.stat_file(&file).unwrap(), s1);
    assert_eq!(user.read("d/f").unwrap(), b"ABd");
    assert_eq!(vfs.writers(&file), Writers::Some);
    vfs.write_back(&file).unwrap();
    mapping.store(2, "C").unwrap();
    assert!(vfs.stat_file(&file).unwrap().mtime > s1.mtime);
    assert_eq!(errno(mapping.store(3, "D")), libc::EFAULT);
}

#[test]
fn a_failed_write_back_is_said_once_a_handle_and_loses_the_bytes() {
    let (disk, vfs, user) = start();
    let root = vfs.root().unwrap();
    let early = [vfs.sync_handle(&root).unwrap(), vfs.sync_handle(&root).unwrap()];
    let saved = build_synced(&vfs, &root, b"saved").unwrap();
    vfs.link_temp(&saved, &root, b"saved").unwrap();
    let file = build(&vfs, &root, b"lost").unwrap();
    vfs.link_temp(&file, &root, b"lost").unwrap();
    disk.fail_write_back();
    let late = vfs.sync_handle(&root).unwrap();
    vfs.sync_all(&late).unwrap();
    for handle in &early {
        assert_eq!(errno(vfs.sync_all(handle)), libc::EIO);
        vfs.sync_all(handle).unwrap();
    }
    assert_eq!(errno(vfs.sync_data(&file)), libc::EIO);
    vfs.sync_data(&file).unwrap();
    vfs.sync_data(&vfs.open_file(&root, b"lost").unwrap()).unwrap();
    vfs.sync_data(&saved).unwrap();
    assert_eq!(user.read("lost").unwrap(), b"lost", "the page cache still has it");
    disk.restart(CrashKind::Machine { log: Keep::All, data: Data::Kept });
    assert_eq!((user.read("lost").unwrap(), user.read("saved").unwrap()), (b"".to_vec(), b"saved".to_vec()));

    user.write("lost", "again").unwrap();
    disk.fail_write_back();
    user.write("lost", "anew").unwrap();
    disk.sync();
    disk.restart(POWER_CUT);
    assert_eq!(user.read("lost").unwrap(), b"anew", "written again is another matter");
}

#[test]
fn what_was_not_written_back_is_lost_where_memory_lets_it_go() {
    let (disk, vfs, user) = start();
    let root = vfs.root().unwrap();
    let file = build(&vfs, &root, b"content").unwrap();
    vfs.link_temp(&file, &root, b"file").unwrap();
    disk.fail_write_back();
    vfs.let_go(&file, 2..4);
    assert_eq!(user.read("file").unwrap(), b"co\0\0ent");
    vfs.let_go(&file, 4..u64::MAX);
    assert_eq!(user.read("file").unwrap(), b"co\0\0\0\0\0");
}

#[test]
fn faults_strike_the_named_call_so_many_times() {
    let (disk, vfs, user) = tree();
    let root = vfs.root().unwrap();
    let mkdir = |name: &[u8]| vfs.create_dir(&root, name, 0o755);
    disk.fail(FaultRule { op: Some(OpKind::CreateDir), name: Some(b"a".to_vec()), errno: libc::ENOSPC, times: 2 });
    mkdir(b"b").unwrap();
    assert_eq!((errno(mkdir(b"a")), errno(mkdir(b"a"))), (libc::ENOSPC, libc::ENOSPC));
    mkdir(b"a").unwrap();

    disk.fail(FaultRule { op: None, name: None, errno: libc::EROFS, times: u64::MAX });
    let before = user.snapshot(true);
    assert_eq!(errno(mkdir(b"c")), libc::EROFS);
    assert_eq!(errno(vfs.create_temp(&root)), libc::EROFS);
    assert_eq!(errno(vfs.rename(&root, b"a", &root, b"c", RenameMode::NoReplace)), libc::EROFS);
    assert_eq!(vfs.list(&root).unwrap().len(), 4);
    vfs.sync_dir(&root).unwrap();
    user.write("users", "may").unwrap();
    user.remove("users").unwrap();
    let times = |snapshot: std::collections::BTreeMap<Vec<u8>, Seen>| snapshot.into_keys().collect::<Vec<_>>();
    assert_eq!(times(user.snapshot(true)), times(before));
    disk.clear_faults();
    mkdir(b"c").unwrap();

    disk.fail(FaultRule { op: Some(OpKind::Root), name: None, errno: libc::EMFILE, times: 1 });
    assert_eq!(errno(vfs.root()), libc::EMFILE);
    disk.fail(FaultRule { op: Some(OpKind::Writers), name: None, errno: libc::EACCES, times: 1 });
    let d = vfs.open_dir(&root, b"d").unwrap();
    let file = vfs.open_file(&d, b"f").unwrap();
    assert_eq!((vfs.writers(&file), vfs.writers(&file)), (Writers::Unknown, Writers::None));
}

#[test]
fn a_users_action_comes_just_before_the_call() {
    let (disk, vfs, user) = tree();
    disk.before(OpKind::Rename, 2, |user| user.write("d/f", "mine").unwrap());
    replace(&vfs, true, b"one").unwrap();
    assert_eq!(user.read("d/f").unwrap(), b"one", "the first rename was not meant");
    user.remove(".pleach/staging/1").unwrap();
    replace(&vfs, true, b"two").unwrap();
    assert_eq!(user.read("d/f").unwrap(), b"two");
    assert_eq!(user.read(".pleach/staging/1").unwrap(), b"mine", "it came before the exchange");

    disk.before(OpKind::ReadAt, 1, |user| user.write("d/f", "changed").unwrap());
    let d = vfs.open_dir(&vfs.root().unwrap(), b"d").unwrap();
    let file = vfs.open_file(&d, b"f").unwrap();
    let before = vfs.stat_file(&file).unwrap();
    let mut buffer = [0; 16];
    assert_eq!(vfs.read_at(&file, 0, &mut buffer).unwrap(), 7);
    assert_ne!(vfs.stat_file(&file).unwrap(), before);
}

#[test]
fn a_lease_keeps_writers_waiting() {
    let (disk, vfs, user) = tree();
    let d = vfs.open_dir(&vfs.root().unwrap(), b"d").unwrap();
    let file = vfs.open_file(&d, b"f").unwrap();
    vfs.with_lease(&file, |writers| {
        assert_eq!(writers, Writers::None);
        user.append("d/f", " and more").unwrap();
        assert_eq!(errno(user.open_writing("d/f")), libc::EAGAIN);
        vfs.rename(&d, b"f", &d, b"g", RenameMode::NoReplace).unwrap();
        assert_eq!(user.read("d/g").unwrap(), b"old");
    });
    assert_eq!(user.read("d/g").unwrap(), b"old and more", "who waits has the inode, not the name");
    let writer = user.open_writing("d/g").unwrap();
    assert_eq!(vfs.with_lease(&file, |writers| writers), Writers::Some);
    drop(writer);

    disk.crash_at(1);
    vfs.with_lease(&file, |_| {
        user.append("d/g", "!").unwrap();
        assert_eq!(errno(vfs.sync_dir(&d)), libc::EIO);
        disk.restart(CrashKind::Process);
        assert_eq!(user.read("d/g").unwrap(), b"old and more!", "the lease ended with the process");
    });
    assert_eq!(user.read("d/g").unwrap(), b"old and more!");
}

#[test]
fn the_record_names_calls_in_order() {
    let (disk, vfs, _user) = tree();
    disk.record(true);
    replace(&vfs, true, b"new").unwrap();
    assert_eq!(errno(vfs.remove_file(&vfs.root().unwrap(), b"none")), libc::ENOENT);
    assert_eq!(
        disk.recorded(),
        [
            "CreateTemp d",
            "WriteAt #105 0+3",
            "SetFileAttributes #105",
            "SyncData #105",
            "LinkTemp #105 -> .pleach/staging/1",
            "Rename .pleach/staging/1 -> d/f exchange",
            "SyncDir d",
            "RemoveFile none = 2",
        ]
    );
    assert!(disk.recorded().is_empty());
}

#[test]
fn an_unmounted_root_is_another_and_empty() {
    let (disk, vfs, user) = tree();
    user.write(".pleach/root", "me").unwrap();
    let root = vfs.root().unwrap();
    let before = vfs.identity().unwrap();
    assert_eq!(before.marker.as_deref(), Some(&b"me"[..]));
    assert_eq!(errno(disk.unmount()), libc::EBUSY);
    drop(root);
    disk.unmount().unwrap();
    let empty = vfs.identity().unwrap();
    assert_eq!(empty.marker, None);
    assert!(empty.fsid != before.fsid && empty.mount != before.mount && empty.inode != before.inode);
    assert!(vfs.list(&vfs.root().unwrap()).unwrap().is_empty());
    assert!(user.snapshot(true).is_empty());
    disk.remount();
    let after = vfs.identity().unwrap();
    assert_ne!(after.mount, before.mount);
    assert_eq!(RootIdentity { mount: before.mount, ..after }, before);

    let held = vfs.root().unwrap();
    disk.unmount_lazily();
    vfs.create_dir(&held, b"into the detached tree", 0o755).unwrap();
    assert!(user.snapshot(true).is_empty());
    disk.remount();
    assert!(user.exists("into the detached tree"));
}

#[test]
fn mounts_inside_are_seen_and_not_entered() {
    let (_disk, vfs, user) = tree();
    user.mkdir_all("m/sub").unwrap();
    user.set_mount_point("m", true).unwrap();
    user.write("m/sub/f", "x").unwrap();
    let root = vfs.root().unwrap();
    assert!(vfs.stat(&root, b"m").unwrap().unwrap().mount_point);
    assert_eq!(errno(vfs.open_dir(&root, b"m")), libc::EXDEV);
    assert_eq!(errno(vfs.open_path(&root, &TreePath::parse(b"m/sub").unwrap())), libc::EXDEV);
    assert_eq!(errno(vfs.rename(&root, b"m", &root, b"n", RenameMode::NoReplace)), libc::EBUSY);
    assert_eq!(errno(vfs.rename(&root, b"d", &root, b"m", RenameMode::Exchange)), libc::EBUSY);
    user.remove_all("m/sub").unwrap();
    assert_eq!(errno(vfs.remove_dir(&root, b"m")), libc::EBUSY);
    user.set_mount_point("m", false).unwrap();
    assert!(!vfs.stat(&root, b"m").unwrap().unwrap().mount_point);
    assert!(vfs.list(&vfs.open_dir(&root, b"m").unwrap()).unwrap().is_empty());
}

#[test]
fn change_times_move_with_names_and_links() {
    for keeps in [false, true] {
        let (disk, vfs, user) = tree();
        disk.set_exchange_keeps_ctime(keeps);
        user.write("a", "a").unwrap();
        user.hard_link("a", "twin").unwrap();
        user.write("b", "b").unwrap();
        let root = vfs.root().unwrap();
        let stat = |name: &[u8]| vfs.stat(&root, name).unwrap().unwrap();
        let (a, b) = (stat(b"a"), stat(b"b"));
        assert_eq!((a.links, a.inode), (2, stat(b"twin").inode));
        assert_eq!(errno(vfs.rename(&root, b"a", &root, b"twin", RenameMode::NoReplace)), libc::EEXIST);
        user.rename("a", "twin").unwrap();
        assert_eq!(stat(b"a"), a, "a plain rename between twins does nothing");

        vfs.rename(&root, b"a", &root, b"b", RenameMode::Exchange).unwrap();
        assert_eq!(stat(b"a").ctime == b.ctime, keeps);
        assert_eq!(stat(b"b").ctime == a.ctime, keeps);
        assert_eq!((stat(b"a").mtime, stat(b"b").mtime), (b.mtime, a.mtime));
        let before = stat(b"b");
        user.append("twin", "+").unwrap();
        assert_eq!(user.read("b").unwrap(), b"a+", "twins share their bytes");
        assert!(stat(b"b").mtime > before.mtime);
        let before = stat(b"b");
        user.remove("twin").unwrap();
        assert!(stat(b"b").ctime > before.ctime && stat(b"b").links == 1);
    }
}

#[test]
fn a_coarse_clock_gives_equal_stamps() {
    let (disk, vfs, user) = tree();
    let root = vfs.root().unwrap();
    assert!(!vfs.coarse_stamps(&root).unwrap());
    disk.set_coarse_clock(true);
    assert!(vfs.coarse_stamps(&root).unwrap());
    disk.advance(4_000_000 - i64::from(disk.now().nanos) % 4_000_000);
    user.write("d/f", "one").unwrap();
    let first = user.stat("d/f").unwrap();
    user.write("d/f", "two").unwrap();
    assert_eq!(user.stat("d/f").unwrap(), first);
    disk.advance(4_000_000);
    user.write("d/f", "six").unwrap();
    assert!(user.stat("d/f").unwrap().ctime > first.ctime);
}

#[test]
fn an_inode_number_comes_again_with_another_birth() {
    let (disk, vfs, user) = tree();
    let old = user.stat("d/f").unwrap();
    let d = vfs.open_dir(&vfs.root().unwrap(), b"d").unwrap();
    let held = vfs.open_file(&d, b"f").unwrap();
    user.replace("d/f", "new").unwrap();
    user.create("d/e", "x").unwrap();
    assert_ne!(user.stat("d/e").unwrap().inode, old.inode, "not while it is open");
    drop(held);
    user.create("d/g", "x").unwrap();
    let new = user.stat("d/g").unwrap();
    assert_eq!(new.inode, old.inode);
    assert!(new.btime > old.btime);
    disk.restart(CrashKind::Machine { log: Keep::None, data: Data::Lost });
    assert_eq!((user.stat("d/f").unwrap().inode, user.read("d/f").unwrap()), (old.inode, b"old".to_vec()));
}

#[test]
fn chown_takes_setuid_unless_the_mode_follows() {
    let (disk, vfs, user) = tree();
    user.chmod("d/f", 0o4755).unwrap();
    user.chown("d/f", 1, 2).unwrap();
    assert_eq!(user.stat("d/f").unwrap().mode, 0o755);
    let d = vfs.open_dir(&vfs.root().unwrap(), b"d").unwrap();
    let file = vfs.open_file(&d, b"f").unwrap();
    disk.set_may_chown(false);
    let give = SetAttributes { owner: Some((3, 4)), mode: Some(0o4755), mtime: None };
    assert_eq!(errno(vfs.set_file_attributes(&file, &give)), libc::EPERM);
    disk.set_may_chown(true);
    vfs.set_file_attributes(&file, &give).unwrap();
    assert_eq!((vfs.stat_file(&file).unwrap().mode, vfs.stat_file(&file).unwrap().uid), (0o4755, 3));
}

#[test]
fn a_setgid_directory_gives_its_group() {
    let (_disk, vfs, user) = tree();
    user.chown("d", 1, 77).unwrap();
    let groups = || {
        let d = vfs.open_dir(&vfs.root().unwrap(), b"d").unwrap();
        user.replace("d/f", "x").unwrap();
        (vfs.stat_file(&vfs.create_temp(&d).unwrap()).unwrap().gid, user.stat("d/f").unwrap().gid)
    };
    assert_eq!(groups(), (0, 1000));
    user.chmod("d", 0o2775).unwrap();
    assert_eq!(groups(), (77, 77));
}

#[test]
fn users_have_the_usual_calls() {
    let (_disk, vfs, user) = start();
    user.mkdir_all("a/b").unwrap();
    user.write("a/b/f", "12345").unwrap();
    user.truncate("a/b/f", 3).unwrap();
    user.patch("a/b/f", 1, "X").unwrap();
    user.touch("a/b/f", PAST).unwrap();
    user.symlink("b/f", "a/l").unwrap();
    user.mkfifo("a/p").unwrap();
    assert_eq!(errno(user.create("a/l", "x")), libc::EEXIST);
    assert_eq!(errno(user.remove("a")), libc::ENOTEMPTY);
    assert_eq!(errno(user.rename("a", "a/b/c")), libc::EINVAL);
    user.mkdir_all(".pleach").unwrap();

    let seen = user.snapshot(false);
    let names: Vec<_> = seen.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(names, ["a", "a/b", "a/b/f", "a/l", "a/p"]);
    let file = &seen[&b"a/b/f"[..]];
    assert_eq!((file.content.as_slice(), file.mtime, file.uid), (&b"1X3"[..], PAST, 1000));
    assert_eq!(format!("{file:?}"), "File 644 1000:1000 1234567890.123456789 \"1X3\"");
    assert_eq!(seen[&b"a/l"[..]].content, b"b/f");
    assert!(user.snapshot(true).contains_key(&b".pleach"[..]));

    let a = vfs.open_dir(&vfs.root().unwrap(), b"a").unwrap();
    assert_eq!(errno(vfs.open_file(&a, b"p")), libc::EINVAL);
    user.remove_all("a").unwrap();
    assert!(!user.exists("a") && user.remove_all("a").is_ok());
}
