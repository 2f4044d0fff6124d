//! What of an answer has not come, or has not gone out: the same for both sides.

use super::What;
use crate::wire::{MANIFEST_BYTES_MAX, PARTS_KNOWN_MAX, RANGES_MAX};

/// See the module.
#[derive(Debug)]
pub(super) struct Left {
    /// Starts and ends, the next one last; never none while something is to come.
    ranges: Vec<(u64, u64)>,
    /// It ends where whoever answers says.
    open: bool,
}

impl Left {
    /// All of an answer; none for a question that breaks the rules.
    pub(super) fn new(what: &What, size: u64) -> Option<Self> {
        let ranges = match what {
            What::From(offset) => vec![(*offset, size)],
            What::Ranges(ranges) if ranges.is_empty() || ranges.len() > RANGES_MAX => return None,
            What::Ranges(ranges) => {
                let ends = ranges.iter().map(|(start, length)| Some((*start, start.checked_add(*length)?)));
                ends.rev().collect::<Option<_>>()?
            }
            What::Manifest(known) if known.len() > PARTS_KNOWN_MAX => return None,
            What::Manifest(_) => vec![(0, MANIFEST_BYTES_MAX)],
        };
        let mut before = None;
        for (start, end) in ranges.iter().rev() {
            let whole = matches!(what, What::From(_)) && start == end;
            if before.is_some_and(|before| before >= *start) || (start >= end && !whole) {
                return None;
            }
            before = Some(*end);
        }
        let open = matches!(what, What::Manifest(_));
        (open || before.is_some_and(|end| end <= size)).then_some(Self { ranges, open })
    }

    /// Where the next piece begins, and how long it may be.
    pub(super) fn next(&self) -> (u64, u64) {
        self.ranges.last().map_or((0, 0), |(start, end)| (*start, end.saturating_sub(*start)))
    }

    /// Whether a piece that is so long ends the answer; `last`: whoever answers says so.
    pub(super) fn ends(&self, length: u64, last: bool) -> bool {
        if self.open { last } else { self.ranges.len() == 1 && length == self.next().1 }
    }

    /// Takes a piece off; says whether it fits.
    pub(super) fn take(&mut self, offset: u64, length: u64, last: bool) -> bool {
        let Some((start, end)) = self.ranges.last_mut() else { return false };
        let upto = offset.checked_add(length).filter(|upto| *upto <= *end && offset == *start);
        let (Some(upto), end) = (upto, *end) else { return false };
        *start = upto;
        if upto == end && !last {
            self.ranges.pop();
        }
        length > 0 || last
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    fn left(ranges: &[(u64, u64)]) -> Option<Left> {
        Left::new(&What::Ranges(ranges.to_vec()), 100)
    }

    #[test]
    fn ranges_are_in_order_apart_and_within() {
        for good in [&[(0, 100)][..], &[(0, 1), (2, 1)], &[(99, 1)]] {
            assert!(left(good).is_some(), "{good:?}");
        }
        let bad: [&[(u64, u64)]; 8] = [
            &[],
            &[(0, 0)],
            &[(0, 101)],
            &[(1, u64::MAX)],
            &[(0, 2), (2, 1)],
            &[(2, 1), (0, 1)],
            &[(0, 3), (2, 1)],
            &[(0, 1), (5, 0)],
        ];
        for bad in bad {
            assert!(left(bad).is_none(), "{bad:?}");
        }
        let many: Vec<(u64, u64)> = (0..1025).map(|n| (2 * n, 1)).collect();
        assert!(Left::new(&What::Ranges(many.clone()), 1 << 20).is_none());
        assert!(Left::new(&What::Ranges(many[1..].to_vec()), 1 << 20).is_some());
        assert!(Left::new(&What::Manifest(vec![[0; 8]; 4097]), 100).is_none());
        assert!(Left::new(&What::From(101), 100).is_none());
    }

    #[test]
    fn pieces_come_in_order_and_end_where_the_last_range_ends() {
        let mut left = left(&[(0, 10), (20, 5)]).unwrap();
        assert_eq!(left.next(), (0, 10));
        assert!(!left.ends(10, true) && left.take(0, 10, false));
        assert_eq!(left.next(), (20, 5));
        assert!(left.take(20, 2, false));
        assert_eq!(left.next(), (22, 3));
        assert!(left.ends(3, false) && !left.ends(2, false));
        for (offset, length) in [(20, 3), (22, 4), (23, 1), (22, u64::MAX), (22, 0)] {
            assert!(!left.take(offset, length, false), "{offset} {length}");
        }
        assert!(left.take(22, 3, true));
    }

    #[test]
    fn what_is_there_is_not_asked_for_again() {
        let ranges = |behind| match What::Ranges(vec![(0, 10), (20, 5)]).behind(behind) {
            What::Ranges(ranges) => ranges,
            other => panic!("{other:?}"),
        };
        assert_eq!(ranges(0), [(0, 10), (20, 5)]);
        assert_eq!(ranges(9), [(9, 1), (20, 5)]);
        assert_eq!(ranges(10), [(20, 5)]);
        assert_eq!(ranges(22), [(22, 3)]);
    }
}
