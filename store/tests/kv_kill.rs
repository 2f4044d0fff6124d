//! The store on disk under SIGKILL: what was acknowledged is there, and no batch is there in part.
//!
//! The test runs itself again as a child that writes batches and says on its standard output which
//! of them are durable. A batch is a function of the store's seed and of its number, so the parent knows
//! what the store must hold from the number alone. `PLEACH_KILLS` widens it, `PLEACH_SEED` repeats it.
//! A kill tests the order of the writes, not what a lost cache of the disk does: the page cache survives.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use pleach_store::kv::sled::SledKv;
use pleach_store::kv::{Batch, Kv};

const NAME: &str = "a_killed_store_keeps_whole_batches";
const CHILD_DIR: &str = "PLEACH_KV_KILL_DIR";
const CHILD_SEED: &str = "PLEACH_KV_KILL_SEED";
/// About 6 seconds on an idle machine; its syncs take several times that on a busy one.
const KILLS: u64 = 100;
/// The row that says which batch was the last.
const LAST_KEY: &[u8] = &[0];
/// As many as the index puts between two flushes, the row above included.
const ROWS_MAX: u64 = 1000;
/// So many ids at most, so that most batches overwrite and delete.
const IDS_MAX: u64 = 12_000;
const HASH_LEN: usize = 16;
/// Longer than any opening or flush takes, so that a child that hangs fails the test.
const CHILD_PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn row_key(id: u64) -> Vec<u8> {
    let mut key = vec![1];
    key.extend_from_slice(format!("{:02x}/some file {id}", id * 7 % 251).as_bytes());
    key
}

/// The batch's number, a body that does not compress away, a checksum.
fn row_value(random: &mut Random, number: u64) -> Vec<u8> {
    let len = usize::try_from(50 + random.below(351)).unwrap();
    let mut value = number.to_be_bytes().to_vec();
    while value.len() < len - HASH_LEN {
        value.push(random.next().to_be_bytes()[0]);
    }
    let hash = blake3::hash(&value);
    value.extend_from_slice(&hash.as_bytes()[..HASH_LEN]);
    value
}

/// Batch `number` of a store: small or large, scattered or a run of neighbours, with deletions or nothing else.
fn make_batch(seed: u64, number: u64) -> Batch {
    let mut random = Random(seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93));
    let ids = (200 + number * 60).min(IDS_MAX);
    let rows = 1 + if random.below(4) == 0 { random.below(10) } else { random.below(ROWS_MAX - 1) };
    let first = random.below(ids);
    let (is_run, deleted_of_8) = (random.below(2) == 0, [0, 2, 2, 8][usize::try_from(random.below(4)).unwrap()]);
    let mut batch = Batch::default();
    for n in 0..rows {
        let id = if is_run { (first + n) % ids } else { random.below(ids) };
        if random.below(8) < deleted_of_8 {
            batch.delete(row_key(id));
        } else {
            batch.put(row_key(id), row_value(&mut random, number));
        }
    }
    batch.put(LAST_KEY.to_vec(), number.to_be_bytes().to_vec());
    batch
}

fn last_batch(kv: &SledKv) -> u64 {
    kv.get(LAST_KEY).unwrap().map_or(0, |value| u64::from_be_bytes(value.try_into().unwrap()))
}

fn say(what: &str, number: u64) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n{what} {number}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Writes until it is killed.
fn run_child(dir: &Path, seed: u64) {
    say("open", 0);
    let mut kv = SledKv::open(dir).unwrap();
    let mut random = Random(seed ^ u64::from(std::process::id()));
    for number in last_batch(&kv) + 1.. {
        let batch = make_batch(seed, number);
        say("begin", number);
        kv.commit(batch).unwrap();
        say("flush", number);
        kv.flush().unwrap();
        say("done", number);
        kv.reopen_if_grown().unwrap();
        // What that does to a grown store, too seldom reached here, and reads between the writes.
        if random.below(12) == 0 {
            drop(kv);
            say("open", 0);
            kv = SledKv::open(dir).unwrap();
        }
        for _ in 0..random.below(20) {
            let key = row_key(random.below(IDS_MAX));
            kv.get(&key).unwrap();
            kv.range(&key, None, 70).unwrap();
        }
    }
}

/// When to kill: so long after the child said a thing for the n-th time, or after its start.
#[derive(Debug)]
struct Moment {
    word: Option<&'static str>,
    times: u64,
    later: Duration,
}

fn draw_moment(random: &mut Random) -> Moment {
    let times = 1 + random.below(25);
    match random.below(8) {
        0 => Moment { word: None, times: 0, later: Duration::from_micros(random.below(40_000)) },
        5..8 => Moment { word: Some("open"), times: 1, later: Duration::from_micros(random.below(16_000)) },
        1 => Moment { word: Some("begin"), times: 1, later: Duration::from_micros(random.below(3_000)) },
        2 => Moment { word: Some("done"), times, later: Duration::from_micros(random.below(20_000)) },
        3 => Moment { word: Some("begin"), times, later: Duration::from_micros(random.below(5_000)) },
        _ => Moment { word: Some("flush"), times, later: Duration::from_micros(random.below(8_000)) },
    }
}

/// The numbers of the last batch begun and the last acknowledged, as far as the child came.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    begun: u64,
    done: u64,
}

fn start_child(dir: &Path, seed: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", NAME, "--nocapture"]).env(CHILD_DIR, dir).env(CHILD_SEED, seed.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

fn kill_at(mut child: Child, moment: &Moment) -> Said {
    let out = BufReader::new(child.stdout.take().unwrap());
    let (sender, receiver) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut said = Said::default();
        for line in out.lines().map_while(Result::ok) {
            let Some((word, number)) = line.split_once(' ') else { continue };
            let Ok(number) = number.parse() else { continue };
            match word {
                "begin" => said.begun = number,
                "done" => said.done = number,
                _ => {}
            }
            // The other end may have heard enough.
            let _heard = sender.send(word.to_owned());
        }
        said
    });
    let mut left = moment.times;
    while let Some(word) = moment.word.filter(|_| left > 0) {
        let heard = receiver.recv_timeout(CHILD_PATIENCE).expect("the child neither writes nor ends by itself");
        left -= u64::from(heard == word);
    }
    std::thread::sleep(moment.later);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "the child failed: {status}");
    reader.join().unwrap()
}

/// A store that lives on over several kills, and what it must hold.
struct Store {
    dir: tempfile::TempDir,
    seed: u64,
    number: u64,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Store {
    fn new(seed: u64) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), seed, number: 0, rows: BTreeMap::new() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn advance(&mut self, to: u64) {
        while self.number < to {
            self.number += 1;
            for (key, value) in make_batch(self.seed, self.number).rows {
                match value {
                    Some(value) => self.rows.insert(key, value),
                    None => self.rows.remove(&key),
                };
            }
        }
    }

    /// Checks all rows; says whether a batch that was not acknowledged is there.
    fn verify(&mut self, said: Said) -> bool {
        let acknowledged = said.done.max(self.number);
        let kv = SledKv::open(&self.path()).expect("a killed store opens");
        let found = last_batch(&kv);
        let possible = acknowledged..=acknowledged.max(said.begun);
        assert!(possible.contains(&found), "the last batch is {found}, but it said {said:?}");
        self.advance(found);
        let rows = kv.range(b"", None, usize::MAX).unwrap();
        for (key, value) in rows.iter().filter(|(key, _)| key != LAST_KEY) {
            let (body, hash) = value.split_at(value.len() - HASH_LEN);
            assert_eq!(&blake3::hash(body).as_bytes()[..HASH_LEN], hash, "{}", key.escape_ascii());
            let number = u64::from_be_bytes(body[..8].try_into().unwrap());
            assert!(number <= found, "{} is of batch {number}, later than {found}", key.escape_ascii());
        }
        let lost = || self.rows.keys().find(|key| rows.binary_search_by(|(found, _)| found.cmp(key)).is_err());
        assert!(rows.len() >= self.rows.len(), "lost {:?}", lost().map(|key| key.escape_ascii().to_string()));
        for ((key, value), (key_found, value_found)) in self.rows.iter().zip(&rows) {
            assert_eq!(key.escape_ascii().to_string(), key_found.escape_ascii().to_string());
            assert!(value == value_found, "{} is of another batch", key.escape_ascii());
        }
        assert_eq!(rows.len(), self.rows.len(), "rows that nobody wrote");
        found > acknowledged
    }
}

fn number_from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[test]
fn a_killed_store_keeps_whole_batches() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        return run_child(Path::new(&dir), number_from_env(CHILD_SEED).unwrap());
    }
    let kills = number_from_env("PLEACH_KILLS").unwrap_or(KILLS);
    let seed = number_from_env("PLEACH_SEED").unwrap_or(1);
    let mut random = Random(seed);
    let (mut stores, mut unready, mut ahead, mut batches) = (1, 0, 0, 0);
    let mut store = Store::new(random.next());
    for kill in 0..kills {
        if random.below(4) == 0 {
            store = Store::new(random.next());
            stores += 1;
        }
        let moment = draw_moment(&mut random);
        println!("seed {seed}, kill {kill}, batch {}: {moment:?}", store.number);
        let before = store.number;
        let said = kill_at(start_child(&store.path(), store.seed), &moment);
        unready += u64::from(!store.path().join("ready").exists());
        ahead += u64::from(store.verify(said));
        batches += store.number - before;
    }
    println!("{kills} kills of {stores} stores: {unready} before they were made, {batches} batches, {ahead} unsaid");
    assert!(batches > kills, "the children were killed before they wrote much");
}
