use proptest::prelude::*;

use super::*;

const SMALL: ChunkSizes = ChunkSizes { min: 64, average: 256, max: 1024 };

/// Bytes without repetition, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn cut(content: &[u8], step: usize) -> Manifest {
    let mut cutter = Cutter::new(SMALL);
    content.chunks(step).for_each(|piece| cutter.feed(piece));
    cutter.finish()
}

/// How many of the new ones are not among the old ones.
fn fresh<T: Ord>(old: &[T], new: &[T]) -> usize {
    let old: BTreeSet<&T> = old.iter().collect();
    new.iter().filter(|item| !old.contains(item)).count()
}

fn hashes(manifest: &Manifest) -> Vec<[u8; 32]> {
    manifest.chunks.iter().map(|chunk| chunk.hash).collect()
}

#[test]
fn a_small_change_of_a_large_content_changes_few_chunks_and_parts() {
    let content = noise(1, 3_000_000);
    let old = cut(&content, 100_000);
    let parts = old.encoded_parts();
    assert!(old.chunks.len() > 5_000 && parts.len() > 50, "{} {}", old.chunks.len(), parts.len());
    let mut flipped = content.clone();
    flipped[1_500_000] ^= 1;
    let with = |at: usize, bytes: Vec<u8>| [&content[..at], &bytes, &content[at..]].concat();
    let changes = [flipped, with(0, vec![7]), with(0, noise(2, 500)), with(3_000_000, noise(3, 500))];
    for (n, changed) in changes.into_iter().enumerate() {
        let new = cut(&changed, 100_000);
        assert!(fresh(&hashes(&old), &hashes(&new)) <= 8, "{n}");
        assert!(fresh(&parts, &new.encoded_parts()) <= 3, "{n}");
        let known = old.known(1_000);
        let answer = new.answer(&known);
        assert!(answer.len() < 4 + 36 * (parts.len() + 2 + 3 * PART_CHUNKS_MAX), "{n}");
        assert_eq!(Manifest::of_answer(&answer, &known, &old, changed.len() as u64), Ok(new));
    }
}

#[test]
fn what_is_like_an_older_content_is_cut_as_if_it_were_not() {
    let content = noise(1, 300_000);
    let with = |at: usize, bytes: &[u8]| [&content[..at], bytes, &content[at..]].concat();
    let mut flipped = content.clone();
    flipped[150_000] ^= 1;
    let repeats = [vec![0; 50_000], content.clone(), vec![0; 50_000], content.clone()].concat();
    let others = [
        content.clone(),
        flipped,
        with(0, &noise(2, 500)),
        with(150_000, &[1; 5_000]),
        with(300_000, &noise(3, 500)),
        content[..299_990].to_vec(),
        content[100_000..].to_vec(),
        noise(4, 300_000),
        repeats,
        Vec::new(),
    ];
    for old in &others {
        for new in &others {
            let mut cutter = Cutter::like(&cut(old, 100_000), SMALL);
            new.chunks(70_000).for_each(|piece| cutter.feed(piece));
            assert_eq!(cutter.finish(), cut(new, 100_000));
        }
    }
}

#[test]
fn chunks_that_nobody_cuts_are_not_followed() {
    let zeros = vec![0; 100_000];
    for length in [1u32, 63, 1025, 50_000] {
        let hash = *blake3::hash(&zeros[..length as usize]).as_bytes();
        let mut cutter = Cutter::like(&Manifest { chunks: vec![Chunk { hash, length }; 5] }, SMALL);
        cutter.feed(&zeros);
        assert_eq!(cutter.finish(), cut(&zeros, 100_000), "{length}");
    }
}

#[test]
fn content_that_repeats_itself_is_cut_too() {
    let zeros = vec![0; 100_000];
    let manifest = cut(&zeros, 9_999);
    assert_eq!(manifest.size(), Some(100_000));
    assert_eq!(manifest.chunks.len(), 98);
    assert!(cut(&[], 1).chunks.is_empty());
}

#[test]
fn the_default_sizes_cut_as_they_say() {
    let mut cutter = Cutter::new(ChunkSizes::default());
    cutter.feed(&noise(1, 8 << 20));
    let chunks = cutter.finish().chunks;
    let (_, whole) = chunks.split_last().unwrap();
    assert!(whole.iter().all(|chunk| (16 << 10..=256 << 10).contains(&chunk.length)));
    assert!((80..200).contains(&chunks.len()), "{}", chunks.len());
}

#[test]
fn lists_that_lie_are_refused() {
    let row = |length: u32| [&[7; 32][..], &length.to_le_bytes()].concat();
    let of = |rows: &[u32], size| {
        let part: Vec<u8> = rows.iter().flat_map(|length| row(*length)).collect();
        Manifest::of_parts([part.as_slice()].into_iter(), size)
    };
    assert!(of(&[5, 6], 11).is_ok());
    for (rows, size) in [
        (&[5, 6][..], 12),
        (&[5, 0], 5),
        (&[CHUNK_BYTES_MAX + 1], u64::from(CHUNK_BYTES_MAX) + 1),
        (&[u32::MAX], u64::from(u32::MAX)),
        (&[1; PART_CHUNKS_MAX + 1], PART_CHUNKS_MAX as u64 + 1),
        (&[], 1),
    ] {
        assert!(of(rows, size).is_err(), "{rows:?} {size}");
    }
    assert!(Manifest::of_parts([&[0; 35][..]].into_iter(), 0).is_err());
    let (own, none) = (Manifest::default(), []);
    for answer in [&[][..], &[1, 0, 0], &[1, 0, 0, 0], &[255; 4], &[255; 40], &[0, 0, 0, 0, 0]] {
        assert!(Manifest::of_answer(answer, &none, &own, 0).is_err(), "{answer:?}");
    }
    let manifest = cut(&noise(1, 5_000), 5_000);
    let good = manifest.answer(&none);
    assert!(good.len() as u64 <= answer_bytes_max(5_000, SMALL));
    assert!(Manifest::of_answer(&good, &none, &own, 5_000).is_ok());
    // A part that begins like one that we said to have, and is another.
    let lie = manifest.known(1);
    assert!(Manifest::of_answer(&manifest.answer(&lie), &lie, &own, 5_000).is_err());
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x80;
        assert!(Manifest::of_answer(&bad, &none, &own, 5_000).is_err(), "byte {at}");
        assert!(Manifest::of_answer(&good[..at], &none, &own, 5_000).is_err(), "cut at {at}");
    }
}

#[test]
fn ranges_are_few_and_leave_only_small_gaps() {
    let piece = |n: u64, here: bool| Piece {
        end: (n + 1) * 10,
        chunk: Chunk { hash: [0; 32], length: 10 },
        from: here.then_some(n * 10),
    };
    let pieces: Vec<Piece> = [true, false, false, true, false, true, true, true, false]
        .into_iter()
        .zip(0..)
        .map(|(h, n)| piece(n, h))
        .collect();
    assert_eq!(ranges(&pieces, 0, 9, 100), [(10, 20), (40, 10), (80, 10)]);
    assert_eq!(ranges(&pieces, 0, 9, 20), [(10, 20), (40, 10)]);
    assert_eq!(ranges(&pieces, 0, 1, 100), [(10, 20)]);
    assert_eq!(ranges(&pieces, 15, 1, 0), [(15, 15)]);
    assert_eq!(ranges(&pieces, 31, 9, 0), [(40, 10)]);
    assert_eq!(ranges(&pieces, 90, 9, 0), []);
}

proptest! {
    #[test]
    fn chunks_are_the_content_in_order(seed: u64, length in 0usize..20_000, step in 1usize..5_000) {
        let content = noise(seed, length);
        let manifest = cut(&content, step);
        prop_assert_eq!(manifest.size(), Some(length as u64));
        prop_assert_eq!(&manifest, &cut(&content, usize::MAX));
        let mut rest = &content[..];
        for chunk in &manifest.chunks {
            let (bytes, more) = rest.split_at(chunk.length as usize);
            prop_assert_eq!(*blake3::hash(bytes).as_bytes(), chunk.hash);
            rest = more;
        }
        let parts = manifest.encoded_parts();
        let read = Manifest::of_parts(parts.iter().map(Vec::as_slice), length as u64);
        prop_assert_eq!(read, Ok(manifest));
    }

    #[test]
    fn an_edit_changes_few_chunks(seed: u64, at in 0usize..200_000, gone in 0usize..300, put in 0usize..300) {
        let content = noise(seed, 200_000);
        let end = (at + gone).min(content.len());
        let changed = [&content[..at], &noise(!seed, put), &content[end..]].concat();
        let (old, new) = (cut(&content, 50_000), cut(&changed, 50_000));
        prop_assert!(fresh(&hashes(&old), &hashes(&new)) <= 20);
        let pieces = join(&new, &old);
        let here: u64 = pieces.iter().filter(|p| p.from.is_some()).map(|p| u64::from(p.chunk.length)).sum();
        let asked: u64 = ranges(&pieces, 0, usize::MAX, u64::MAX).iter().map(|(_, length)| length).sum();
        prop_assert_eq!(here + asked, changed.len() as u64);
        for piece in pieces {
            if let Some(from) = piece.from {
                let (from, start) = (usize::try_from(from).unwrap(), usize::try_from(piece.start()).unwrap());
                let length = piece.chunk.length as usize;
                prop_assert_eq!(&content[from..from + length], &changed[start..start + length]);
            }
        }
    }

    #[test]
    fn no_bytes_make_a_reader_fail(answer in proptest::collection::vec(any::<u8>(), 0..400), size: u64) {
        let _read = Manifest::of_answer(&answer, &[[0; 8]], &Manifest::default(), size);
        let _read = Manifest::of_parts([answer.as_slice()].into_iter(), size);
    }
}
