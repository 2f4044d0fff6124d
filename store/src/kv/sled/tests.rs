use std::process::Command;

use super::*;

fn put(kv: &mut SledKv, key: &str, value: &[u8]) {
    let mut batch = Batch::default();
    batch.put(key.as_bytes().to_vec(), value.to_vec());
    kv.commit(batch).unwrap();
    kv.flush().unwrap();
}

/// Has sled take all rows.
fn move_all(kv: &mut SledKv) {
    kv.move_fresh().unwrap();
    kv.settle().unwrap();
}

/// What a crash leaves.
fn crash(mut kv: SledKv) {
    kv.fresh.clear();
}

#[test]
fn a_store_without_marker_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    put(&mut SledKv::open(dir.path()).unwrap(), "a", b"1");
    assert!(SledKv::open(dir.path()).unwrap().get(b"a").unwrap().is_some());
    fs::remove_file(dir.path().join("ready")).unwrap();
    assert!(SledKv::open(dir.path()).unwrap().get(b"a").unwrap().is_none());
}

#[test]
fn a_broken_store_is_moved_aside_whole() {
    let dir = tempfile::tempdir().unwrap();
    put(&mut SledKv::open(dir.path()).unwrap(), "a", b"1");
    for entry in fs::read_dir(dir.path().join("db")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::write(&path, b"garbage that is no store").unwrap();
        }
    }
    assert!(matches!(SledKv::open(dir.path()), Err(KvError::Broken { .. })));
    let aside = move_aside(dir.path()).unwrap();
    assert!(aside.is_dir());
    assert!(SledKv::open(dir.path()).unwrap().get(b"a").unwrap().is_none());
}

#[test]
fn an_opening_that_was_cut_short_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut kv = SledKv::open(dir.path()).unwrap();
    put(&mut kv, "a", b"1");
    move_all(&mut kv);
    drop(kv);
    let metadata = dir.path().join("db/metadata");
    // One opening takes the log into the snapshot; it is killed before it begins the next log.
    drop(SledKv::open(dir.path()).unwrap());
    for entry in fs::read_dir(&metadata).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("log_") {
            assert_eq!(fs::metadata(&path).unwrap().len(), 0);
            fs::remove_file(path).unwrap();
        }
    }
    for _ in 0..3 {
        assert!(SledKv::open(dir.path()).unwrap().get(b"a").unwrap().is_some());
    }
}

#[test]
fn a_suspect_store_is_broken_until_it_is_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    let mut kv = SledKv::open(dir.path()).unwrap();
    put(&mut kv, "a", b"1");
    kv.suspect("read a row", io::Error::other("a fault"));
    drop(kv);
    assert!(matches!(SledKv::open(dir.path()), Err(KvError::Broken { .. })));
    move_aside(dir.path()).unwrap();
    assert!(SledKv::open(dir.path()).is_ok());
}

#[test]
fn two_owners_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _first = SledKv::open(dir.path()).unwrap();
    assert!(matches!(SledKv::open(dir.path()), Err(KvError::Io { what: "take its lock", .. })));
}

#[test]
fn reopening_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut kv = SledKv::open(dir.path()).unwrap();
    for n in 0..100 {
        put(&mut kv, &format!("{n:03}"), &[7; 100]);
    }
    kv.written_bytes = GROWN_BYTES_MAX;
    assert!(kv.reopen_if_grown().unwrap());
    assert_eq!(kv.range(b"", None, 1000).unwrap().len(), 100);
    assert_eq!(kv.range(b"010", Some(b"020"), 5).unwrap().len(), 5);
}

/// What a power cut leaves of sled: what it was when it was last flushed.
fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn put_back(from: &Path, to: &Path) {
    if to.is_dir() {
        fs::remove_dir_all(to).unwrap();
        copy_dir(from, to);
    } else {
        fs::copy(from, to).unwrap();
    }
}

fn values(kv: &SledKv) -> Vec<(String, Vec<u8>)> {
    let rows = kv.range(b"", None, usize::MAX).unwrap();
    rows.into_iter().map(|(key, value)| (String::from_utf8(key).unwrap(), value)).collect()
}

#[test]
fn what_sled_lacks_comes_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (db, old) = (dir.path().join("db"), dir.path().join("old"));
    let mut kv = SledKv::open(dir.path()).unwrap();
    put(&mut kv, "a", b"1");
    move_all(&mut kv);
    copy_dir(&db, &old);
    put(&mut kv, "a", b"2");
    put(&mut kv, "b", b"1");
    let mut batch = Batch::default();
    batch.delete(b"a".to_vec());
    batch.put(b"c".to_vec(), b"1".to_vec());
    kv.commit(batch).unwrap();
    kv.flush().unwrap();
    let expected = values(&kv);
    crash(kv);
    put_back(&old, &db);
    // The second time the log holds what is there by now.
    for _ in 0..2 {
        let kv = SledKv::open(dir.path()).unwrap();
        assert_eq!(values(&kv), expected);
        assert_eq!(kv.number, 4);
    }
}

#[test]
fn an_older_log_takes_nothing_back() {
    let dir = tempfile::tempdir().unwrap();
    let (log, old) = (dir.path().join("log"), dir.path().join("old"));
    let mut kv = SledKv::open(dir.path()).unwrap();
    put(&mut kv, "a", b"1");
    put(&mut kv, "a", b"2");
    fs::copy(&log, &old).unwrap();
    put(&mut kv, "a", b"3");
    move_all(&mut kv);
    put(&mut kv, "b", b"1");
    let expected = values(&kv);
    crash(kv);
    // The write of the last batch never came to the disk, and neither did the one before.
    put_back(&old, &log);
    let mut kv = SledKv::open(dir.path()).unwrap();
    assert_eq!(values(&kv), expected);
    put(&mut kv, "a", b"4");
    crash(kv);
    assert_eq!(SledKv::open(dir.path()).unwrap().get(b"a").unwrap().unwrap(), b"4");
}

#[test]
fn a_store_that_lost_what_was_durable_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    let (db, old) = (dir.path().join("db"), dir.path().join("old"));
    let mut kv = SledKv::open(dir.path()).unwrap();
    put(&mut kv, "a", b"1");
    move_all(&mut kv);
    copy_dir(&db, &old);
    put(&mut kv, "a", b"2");
    move_all(&mut kv);
    // Both logs hold something later by now.
    for key in ["b", "c"] {
        put(&mut kv, key, b"1");
        move_all(&mut kv);
    }
    crash(kv);
    put_back(&old, &db);
    assert!(matches!(SledKv::open(dir.path()), Err(KvError::Broken { .. })));
    let aside = move_aside(dir.path()).unwrap();
    assert!(LOGS.iter().all(|log| aside.with_extension(log).exists()));
    assert!(values(&SledKv::open(dir.path()).unwrap()).is_empty());
}

#[test]
fn a_store_that_is_made_anew_takes_nothing_from_the_logs() {
    let dir = tempfile::tempdir().unwrap();
    let mut kv = SledKv::open(dir.path()).unwrap();
    // One in each.
    put(&mut kv, "a", b"1");
    move_all(&mut kv);
    put(&mut kv, "b", b"1");
    drop(kv);
    fs::remove_file(dir.path().join("ready")).unwrap();
    assert!(values(&SledKv::open(dir.path()).unwrap()).is_empty());
}

/// So many new rows, then a change of the first one.
fn fill(kv: &mut SledKv, rows: usize) {
    let mut batch = Batch::default();
    for row in 0..rows {
        batch.put(format!("{row:06}").into_bytes(), vec![7; 100]);
    }
    kv.commit(batch).unwrap();
    kv.flush().unwrap();
    put(kv, "000000", b"changed");
}

#[test]
fn rows_of_which_sled_has_a_part_come_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut kv = SledKv::open(dir.path()).unwrap();
    put(&mut kv, "000001", b"old");
    move_all(&mut kv);
    fill(&mut kv, 2 * FLUSHED_ROWS_MAX);
    let expected = values(&kv);
    let part = next_batch(&mut kv.fresh.iter().peekable(), kv.number);
    kv.engine().unwrap().writer().write(part).unwrap();
    crash(kv);
    assert_eq!(values(&SledKv::open(dir.path()).unwrap()), expected);
}

#[test]
fn what_is_on_its_way_to_sled_stays_in_its_log_while_the_other_one_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    let mut kv = SledKv::open(dir.path()).unwrap();
    // Each log has the earlier batches once.
    for round in ["1", "2"] {
        put(&mut kv, "a", round.as_bytes());
        move_all(&mut kv);
        let old = dir.path().join(round);
        copy_dir(&db, &old);
        fill(&mut kv, LAYER_ROWS_MAX);
        assert!(kv.moving.is_some());
        fill(&mut kv, 10);
        let expected = values(&kv);
        crash(kv);
        put_back(&old, &db);
        kv = SledKv::open(dir.path()).unwrap();
        assert_eq!(values(&kv), expected);
    }
}

#[test]
fn of_a_batch_that_was_not_flushed_sled_gets_no_row_before_a_log_has_all() {
    let dir = tempfile::tempdir().unwrap();
    let (db, old) = (dir.path().join("db"), dir.path().join("old"));
    let mut kv = SledKv::open(dir.path()).unwrap();
    copy_dir(&db, &old);
    let mut batch = Batch::default();
    batch.put(b"a".to_vec(), b"1".to_vec());
    batch.put(b"b".to_vec(), b"1".to_vec());
    kv.commit(batch).unwrap();
    let expected = values(&kv);
    drop(kv);
    put_back(&old, &db);
    assert_eq!(values(&SledKv::open(dir.path()).unwrap()), expected);
}

#[test]
fn many_rows_go_to_sled() {
    let dir = tempfile::tempdir().unwrap();
    let mut kv = SledKv::open(dir.path()).unwrap();
    fill(&mut kv, LAYER_ROWS_MAX - 1);
    assert_eq!((kv.fresh.len(), kv.moving.is_some()), (LAYER_ROWS_MAX - 1, false));
    put(&mut kv, "one more", b"1");
    assert_eq!((kv.fresh.len(), kv.moving.is_some()), (0, true));
    kv.settle().unwrap();
    // Few large ones, too.
    put(&mut kv, "large", &vec![7; crate::kv::log::LOG_BYTES]);
    assert!(kv.moving.is_some());
    put(&mut kv, "last", b"1");
    drop(kv);
    for log in LOGS {
        fs::remove_file(dir.path().join(log)).unwrap();
    }
    assert_eq!(SledKv::open(dir.path()).unwrap().range(b"", None, usize::MAX).unwrap().len(), LAYER_ROWS_MAX + 2);
}

#[test]
fn rows_read_the_same_while_they_are_put_into_sled() {
    let dir = tempfile::tempdir().unwrap();
    let mut kv = SledKv::open(dir.path()).unwrap();
    let mut expected = Layer::new();
    let mut state = 1_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let (rounds, mut met) = (300, 0);
    for round in 0..rounds {
        let mut batch = Batch::default();
        for _ in 0..random(400) {
            let key = format!("{:05}", random(20_000)).into_bytes();
            match random(4) {
                0 => batch.delete(key),
                _ => batch.put(key, vec![b'v'; usize::try_from(random(60)).unwrap()]),
            }
        }
        expected.extend(batch.rows.clone());
        kv.commit(batch).unwrap();
        kv.flush().unwrap();
        if round % 50 == 49 {
            kv.written_bytes = GROWN_BYTES_MAX;
            assert!(kv.reopen_if_grown().unwrap());
        }
        for _ in 0..20 {
            met += usize::from(kv.is_moving());
            let key = format!("{:05}", random(20_000)).into_bytes();
            assert_eq!(kv.get(&key).unwrap(), expected.get(&key).cloned().flatten());
            let limit = usize::try_from(random(100)).unwrap();
            let stored = expected.range(key.clone()..).filter_map(|(k, v)| Some((k.clone(), v.clone()?)));
            assert_eq!(kv.range(&key, None, limit).unwrap(), stored.take(limit).collect::<Vec<_>>());
        }
    }
    assert!(met > 0, "nothing was read meanwhile");
    drop(kv);
    let kv = SledKv::open(dir.path()).unwrap();
    let stored: Vec<Row> = expected.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    assert_eq!(kv.range(b"", None, usize::MAX).unwrap(), stored);
}

/// A disk of so many MiB.
struct Disk(tempfile::TempDir);

impl Disk {
    /// None where none can be mounted.
    fn mount(size: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={size}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output().unwrap();
        if !mount.status.success() {
            eprintln!("left out: a tmpfs cannot be mounted here: {}", String::from_utf8_lossy(&mount.stderr));
            return None;
        }
        Some(Self(dir))
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("store")
    }

    fn free(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.0.path()).unwrap();
        disk.f_bfree * disk.f_frsize
    }

    /// Leaves so many bytes free.
    fn fill(&self, left: u64) {
        let file = File::create(self.0.path().join("filler")).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, self.free() - left).unwrap();
    }

    fn make_room(&self) {
        fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(done.is_ok_and(|status| status.success()));
    }
}

#[test]
fn a_full_disk_stops_a_store_until_there_is_room_and_it_has_all() {
    let Some(disk) = Disk::mount(64) else { return };
    let mut kv = SledKv::open(&disk.store()).unwrap();
    for round in 0..6 {
        disk.fill(1 << 20);
        fill(&mut kv, LAYER_ROWS_MAX / 2);
        put(&mut kv, "round", &[round]);
        kv.move_fresh().unwrap();
        assert!(matches!(kv.settle(), Err(KvError::Io { .. })));
        assert!(matches!(kv.get(b"round"), Err(KvError::Poisoned)));
        drop(kv);
        assert!(matches!(SledKv::open(&disk.store()), Err(KvError::Io { .. })));
        disk.make_room();
        kv = SledKv::open(&disk.store()).unwrap();
        assert_eq!(kv.get(b"round").unwrap(), Some(vec![round]));
        assert_eq!(values(&kv).len(), LAYER_ROWS_MAX / 2 + 1);
    }
}

#[test]
fn an_engine_that_failed_to_write_is_left_behind_and_its_files_open() {
    let Some(disk) = Disk::mount(64) else { return };
    let mut kv = SledKv::open(&disk.store()).unwrap();
    fill(&mut kv, 10);
    move_all(&mut kv);
    disk.fill(17 << 20);
    let mut batch = sled::Batch::default();
    for row in 0..FLUSHED_ROWS_MAX {
        let mut value = vec![0; 32 * 1024];
        blake3::Hasher::new().update(&row.to_le_bytes()).finalize_xof().fill(&mut value);
        batch.insert(row.to_be_bytes().to_vec(), value);
    }
    let writer = kv.engine().unwrap().writer();
    assert_eq!(writer.write(batch).unwrap_err().kind(), io::ErrorKind::StorageFull);
    writer.write(sled::Batch::default()).unwrap_err();
    assert!(matches!(kv.get(b"not in a log"), Err(KvError::Io { .. })));
    drop((writer, kv));
    disk.make_room();
    let kv = SledKv::open(&disk.store()).unwrap();
    assert_eq!(kv.get(b"000000").unwrap(), Some(b"changed".to_vec()));
    assert_eq!(values(&kv).len(), 10);
}

#[test]
fn what_the_system_refuses_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    put(&mut SledKv::open(dir.path()).unwrap(), "a", b"1");
    let (slabs, aside) = (dir.path().join("db/slabs"), dir.path().join("aside"));
    fs::rename(&slabs, &aside).unwrap();
    std::os::unix::fs::symlink(&slabs, &slabs).unwrap();
    assert!(matches!(SledKv::open(dir.path()), Err(KvError::Io { .. })));
    fs::remove_file(&slabs).unwrap();
    fs::rename(&aside, &slabs).unwrap();
    assert_eq!(SledKv::open(dir.path()).unwrap().get(b"a").unwrap(), Some(b"1".to_vec()));
}
