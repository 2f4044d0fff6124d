//! A small seeded mutator: what a coverage-guided fuzzer does first, without its guide. The same
//! seed gives the same inputs on every machine.

/// A small generator. Source: xorshift64*.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins with a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `n`; 0 where there is none.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap_or_default().checked_rem(n).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap_or_default()
    }
}

/// The longest input, in bytes: a frame and a little.
const INPUT_BYTES_MAX: usize = 300 * 1024;
/// What lengths and numbers are replaced by: the edges of each varint width, and their claims.
const LIES: [&[u8]; 12] = [
    &[0],
    &[1],
    &[250],
    &[251],
    &[251, 0xff, 0xff],
    &[252, 0, 0, 4, 0],
    &[252, 0xff, 0xff, 0xff, 0xff],
    &[253, 0, 0, 0, 0, 0, 0, 0, 0x80],
    &[253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    &[254],
    &[255],
];

/// An input made of one of the corpus by one to eight changes, one of which may be a part of another.
#[must_use]
pub fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let pick = |random: &mut Random| corpus.get(random.below(corpus.len())).cloned().unwrap_or_default();
    let mut bytes = pick(random);
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len() + 1);
        let end = (at + 1 + random.below(16)).min(bytes.len());
        match random.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.byte(),
            2 => bytes.insert(at, random.byte()),
            3 => drop(bytes.drain(at..end)),
            4 => bytes.truncate(at),
            5 => drop(bytes.splice(at..at, pick(random).drain(..).skip(at % 7).take(64))),
            6 => {
                // A varint, or whatever stands there, lies about its length.
                let lie = LIES[random.below(LIES.len())];
                drop(bytes.splice(at..(at + 1).min(bytes.len()), lie.iter().copied()));
            }
            7 => {
                let again = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, again));
            }
            _ => {
                // The tail of another: what begins well goes on as something else.
                let other = pick(random);
                bytes.truncate(at);
                bytes.extend_from_slice(other.get(random.below(other.len() + 1)..).unwrap_or_default());
            }
        }
        bytes.truncate(INPUT_BYTES_MAX);
    }
    bytes
}
