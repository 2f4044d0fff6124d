//! What is left after a crash.

use std::sync::Arc;

use pleach_protocol::time::Time;

use super::image::{Id, Image, Inode};
use super::state::State;

/// The size of a block that is written whole or not at all.
const BLOCK_BYTES: usize = 512;
/// How long a machine takes to start.
const BOOT_NANOS: i64 = 1_000_000_000;

/// How a crash comes about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CrashKind {
    /// kill -9: the kernel lives on, and so does everything it was told.
    Process,
    /// Power cut: only what was durable is left, and what happened to get there.
    Machine {
        /// How much of the log of name operations got to the disk.
        log: Keep,
        /// What became of bytes that were never synced, in files that are left.
        data: Data,
    },
}

/// How much of the uncommitted log survives; always from its beginning.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Keep {
    /// Everything: somebody else's fsync had just committed it.
    All,
    /// So many records.
    First(usize),
    /// Nothing.
    None,
    /// A length drawn from this seed.
    Prefix(u64),
}

/// What becomes of un-synced bytes. Attributes, the content time among them, go with the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Data {
    /// They got there.
    Kept,
    /// They did not: a new file is empty, an old one has its old bytes, but for a logged truncation.
    Lost,
    /// The new length, and by this seed some blocks of the new bytes; else the old ones or zeros.
    Torn(u64),
}

/// What was durable at a moment.
#[derive(Clone, Debug)]
pub struct DiskImage(Image);

/// A scrambled number, always the same for the same one. Source: SplitMix64, the output function.
pub(super) fn scramble(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl State {
    /// Lets the crash have its effect, and starts the process or the machine again.
    pub(super) fn restart(&mut self, kind: CrashKind) {
        self.end_epoch();
        match kind {
            CrashKind::Process => self.end_process(),
            CrashKind::Machine { log, data } => self.end_machine(log, data),
        }
    }

    fn end_epoch(&mut self) {
        self.script.epoch += 1;
        self.script.crashed = false;
        self.script.crash_in = None;
        self.watches = None;
        self.script.handles = Arc::default();
    }

    /// The kernel closes what the process had open.
    fn end_process(&mut self) {
        for opens in self.opens.values_mut() {
            opens.agent = Arc::default();
            opens.agent_writing = Arc::default();
        }
        let leased: Vec<_> = self.leases.iter().map(|(id, count)| (*id, *count)).collect();
        for (id, count) in leased {
            (0..count).for_each(|_| self.end_lease(id));
        }
    }

    fn end_machine(&mut self, log: Keep, data: Data) {
        let kept = match log {
            Keep::All => self.log.len(),
            Keep::First(count) => count.min(self.log.len()),
            Keep::None => 0,
            Keep::Prefix(seed) => draw(seed, self.log.len() + 1),
        };
        let mut image = self.durable.clone();
        for change in self.log[..kept].iter().flatten() {
            image.apply(change);
        }
        image.drop_nameless();
        self.treat_data(&mut image, data);
        self.boot_from(image);
    }

    pub(super) fn image(&self) -> DiskImage {
        DiskImage(self.durable.clone())
    }

    /// The machine starts again with the disk as it was then.
    pub(super) fn put_back(&mut self, image: &DiskImage) {
        self.end_epoch();
        let mut image = image.0.clone();
        image.drop_nameless();
        self.boot_from(image);
    }

    fn boot_from(&mut self, image: Image) {
        self.live = image.clone();
        self.durable = image;
        self.forget_kernel();
        self.now_nanos += BOOT_NANOS;
        self.booted = Time::from_nanos(self.now_nanos);
        self.boot += 1;
        self.mount += 1;
    }

    fn treat_data(&self, image: &mut Image, data: Data) {
        for (id, inode) in &mut image.inodes {
            let live = self.live.get(*id).and_then(Inode::data);
            // Bytes whose write-back failed never were on their way.
            let (Some(live), Some(bytes), false) = (live, inode.data_mut(), self.lost.contains(id)) else { continue };
            match data {
                Data::Kept => *bytes = Arc::clone(live),
                Data::Lost => {}
                Data::Torn(seed) if self.dirty.contains(id) => *bytes = Arc::new(tear(bytes, live, seed, *id)),
                Data::Torn(_) => {}
            }
        }
    }
}

/// A number below `count` (which is not zero).
fn draw(seed: u64, count: usize) -> usize {
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    usize::try_from(scramble(seed) % count).unwrap_or(0)
}

/// Some blocks of the new bytes over the old ones, in the new length.
fn tear(old: &[u8], new: &[u8], seed: u64, id: Id) -> Vec<u8> {
    let mut torn = old.to_vec();
    torn.resize(new.len(), 0);
    let seed = scramble(seed ^ scramble(id.0));
    for (index, (torn, new)) in torn.chunks_mut(BLOCK_BYTES).zip(new.chunks(BLOCK_BYTES)).enumerate() {
        if scramble(seed.wrapping_add(index as u64)) & 1 == 1 {
            torn.copy_from_slice(new);
        }
    }
    torn
}
