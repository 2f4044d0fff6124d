//! Seeds of the simulation. PLEACH_SIM_SEEDS sets how many.

use std::sync::atomic::{AtomicU64, Ordering};

use pleach_tests::sim::shrink::{self, Effort, run_and_shrink};
use pleach_tests::sim::{Plan, World, run};

#[test]
fn seeds_of_the_simulation_end_well() {
    let seeds = std::env::var("PLEACH_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000);
    let next = AtomicU64::new(1);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut failures = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed > seeds {
                    return failures;
                }
                if let Err(what) = run_and_shrink(&Plan { seed, ..Plan::default() }, Effort::default()) {
                    failures.push(what);
                    // One failure made small says more than many.
                    next.store(seeds + 1, Ordering::Relaxed);
                }
            }
        };
        let threads: Vec<_> =
            (0..std::thread::available_parallelism().map_or(1, usize::from)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Found by seed 2767: a session took the place of one that had not ended, and what was asked for on the
/// old one never came.
#[test]
fn what_a_replaced_session_was_asked_for_is_asked_again() {
    run(2_767, false).unwrap();
}

/// Found by seed 401516: a store that was put back knew a content that its user had removed, which kept a directory of `atomic`
/// away on all nodes; what such a directory lacks was not asked for where lost contents are told from a fault.
#[test]
fn a_directory_that_lacks_a_lost_content_may_stay_away() {
    assert_eq!(run(401_516, false).unwrap().lost_with_power, 1);
}

/// Found by seed 517236: a node that died with what it had merged took a user's file up under the number that the lost row had,
/// and the checker, which had read that head, took the file for one that no journal named.
#[test]
fn a_journal_that_lost_its_end_is_read_again_under_the_same_head() {
    run(517_236, false).unwrap();
}

/// Found by seed 564921: the store failed as a wait was about to be confirmed. Only that wait heard of it, the tree went on with a
/// store that was closed, and failed over it later.
#[test]
fn a_store_that_fails_as_a_wait_ends_closes_the_tree() {
    run(564_921, false).unwrap();
}

/// Found by seed 620974: a user wrote as many bytes over a file, and the power failed when those had got to the disk and the file's
/// time had not. No stamp shows that, and nobody reads all files after a power failure.
#[test]
fn bytes_that_the_power_let_through_without_their_time_are_seen_once_somebody_says_so() {
    run(620_974, false).unwrap();
}

/// Found by seed 760354: a store that was put back found its disk's files as if they were new, and its node turned to one that only
/// receives. They are its users' from then on, and the checker took them for what a peer had replaced.
#[test]
fn what_a_store_that_went_back_finds_stays_where_its_node_only_receives() {
    run(760_354, false).unwrap();
}

/// Found by seed 760629: one node was wiped, and the other, which only receives, lost its store. It tells nobody what it shows.
#[test]
fn what_a_receiver_without_its_store_shows_is_told_to_nobody() {
    run(760_629, false).unwrap();
}

/// Found by seed 761793: ignore rules held between two scans alone, and what the applier passed meanwhile was never applied.
#[test]
fn rules_that_held_for_a_moment_keep_nothing_back() {
    run(761_793, false).unwrap();
}

/// Found by seed 777348: a store that was put back showed again what its user had removed, and a wait took it for what is to last;
/// the deletion had been told before.
#[test]
fn what_a_store_that_went_back_shows_again_is_promised_to_nobody() {
    run(777_348, false).unwrap();
}

/// Found by seeds 763187 and 775548: a user touched one of a symbolic link's two names.
#[test]
fn a_symbolic_link_has_its_times_under_all_its_names() {
    for seed in [763_187, 775_548] {
        run(seed, false).unwrap();
    }
}

/// Found by seed 781959: the first start failed over a full disk, the disk was unmounted, and a tree began beneath it.
#[test]
fn a_disk_that_no_tree_knows_is_not_unmounted() {
    run(781_959, false).unwrap();
}

/// Found by seed 824024: a root that follows (`first`) and only receives kept as told what its user had changed before it went.
#[test]
fn what_was_found_is_a_users_once_they_change_it() {
    run(824_024, false).unwrap();
}

/// Found by seed 828231: a store was put back, and its user removed a directory before its node met the peer, who had heard of it
/// from the newer store. The deletion covers what the older one found alone.
#[test]
fn what_is_removed_under_an_older_store_may_return() {
    run(828_231, false).unwrap();
}

/// Found by seed 810480: a user wrote, while the engine worked, into a file that had another name as well, which changed with it.
#[test]
fn what_is_written_between_two_calls_is_written_under_all_its_names() {
    run(810_480, false).unwrap();
}

/// Found by seed 817647: a user wrote into a file just before the directory that holds it was renamed for a peer, as one unit. What
/// they wrote is theirs under the new name.
#[test]
fn what_was_just_written_goes_along_with_its_directory() {
    run(817_647, false).unwrap();
}

/// Found by seed 849659: small contents have rows in the store only where they were sought, and these were not read.
#[test]
fn a_small_content_that_was_sought_is_found_where_it_is_shown() {
    run(849_659, false).unwrap();
}

/// Found by seed 876203, a fault of the engine: see `vault::what_was_displaced_before_a_kill_is_filed_although_its_successor_is_gone`.
#[test]
fn a_version_in_staging_outlives_the_link_that_displaced_it() {
    run(876_203, false).unwrap();
}

/// Found by seed 877839: a disk was put back, and what it held paired with what a receiver's peer had removed: it is the user's.
#[test]
fn what_an_older_disk_holds_is_a_receivers_own() {
    run(877_839, false).unwrap();
}

/// Found by seed 880039: what a root finds as it begins to follow a peer (`first`) is promised to nobody who waits.
#[test]
fn what_a_follower_found_is_not_waited_for() {
    run(880_039, false).unwrap();
}

/// Found by seed 857207: what a user put beneath a mount point while the disk was away was looked for on the disk.
#[test]
fn what_is_put_beneath_a_mount_point_is_not_on_the_disk() {
    run(857_207, false).unwrap();
}

/// Found by seed 867524: a node that only sends passed a peer's file over, and its user had just removed what it took the place of.
#[test]
fn what_a_sender_removed_covers_what_it_passed_over() {
    run(867_524, false).unwrap();
}

/// Faults must strike nodes that exchange something: a simulator whose frames get nowhere finds nothing. Seeds that
/// are calm in this are meant to be.
#[test]
fn changes_are_exchanged_while_things_go_wrong() {
    let merges: u64 = (1..=48).map(|seed| run(seed, false).unwrap_or_else(|failure| panic!("{failure}")).merges).sum();
    assert!(merges > 4 * 48, "{merges} batches were merged amid faults by 48 seeds");
}

#[test]
fn a_seed_does_the_same_each_time() {
    for seed in 1..25 {
        let (one, two) = (run(seed, false).unwrap(), run(seed, false).unwrap());
        assert_eq!((one.steps, one.trace), (two.steps, two.trace), "seed {seed}");
    }
}

/// Stands for a checker with a fault: it fails once a user renamed and a node worked after that.
fn planted(log: &[String]) -> Option<String> {
    let at = log.iter().position(|line| line.contains("user: Rename") && !line.ends_with("refused"))?;
    let works = log[at..].iter().any(|line| line.starts_with("n1 works"));
    works.then(|| format!("planted: a node worked after a rename, line {at}"))
}

#[test]
fn a_failing_run_is_made_small_and_replays() {
    let mut shrunk = 0;
    for seed in 1..40 {
        let plan = Plan { seed, check: Some(planted), ..Plan::default() };
        let Err(failure) = World::run(plan.clone()) else { continue };
        let before = failure.steps.len();
        let (small, failure) = shrink::shrink(&plan, *failure, Effort::default());
        let steps = small.only.clone().unwrap();
        // Somebody wrote what is renamed, somebody renamed it, a node worked; often other paths come in between, or
        // what is renamed came from elsewhere, after many steps.
        assert!(steps.len() <= (before / 3).max(8), "seed {seed}: {before} steps became {steps:?}");
        for step in &steps {
            let only = Some(steps.iter().copied().filter(|s| s != step).collect());
            assert!(
                World::run(Plan { only, ..plan.clone() }).is_ok(),
                "seed {seed}: {step} of {steps:?} is not needed"
            );
        }
        assert!(steps.len() < before);
        let replayed = Plan { only: shrink::read(&shrink::written(&steps)), ..plan };
        assert_eq!(World::run(replayed).unwrap_err().what, failure.what);
        let command = shrink::command(&small);
        assert!(command.ends_with(&format!("--seed {seed} --steps {}", shrink::written(&steps))), "{command}");
        shrunk += 1;
    }
    assert!(shrunk > 5, "the planted fault was met only {shrunk} times");
}

#[test]
fn steps_are_written_as_ranges_and_read_again() {
    for (text, steps) in [("3,7-9,40", vec![3, 7, 8, 9, 40]), ("1", vec![1]), ("1-2", vec![1, 2])] {
        let steps = steps.into_iter().collect();
        assert_eq!((shrink::written(&steps).as_str(), shrink::read(text)), (text, Some(steps)));
    }
    for wrong in ["", "x", "1-", "-", "1,,2", "1-9999999999", "1-4000000000"] {
        assert_eq!(shrink::read(wrong), None, "{wrong}");
    }
}

/// Found by seed 903391, a fault of the engine: see
/// `rescan::what_was_read_in_a_new_directory_that_is_renamed_meanwhile_does_not_return`.
#[test]
fn a_new_directory_that_is_renamed_while_it_is_read_does_not_return() {
    run(903_391, false).unwrap();
}

/// Found by seed 921113, a fault of the engine: see
/// `troubles::a_link_put_where_a_directory_gets_its_attributes_is_a_users_change`.
#[test]
fn a_link_that_has_the_inode_of_the_directory_before_it_is_seen() {
    run(921_113, false).unwrap();
}

/// Found by seed 939472, a fault of the engine: a store that was put back wrote a file whose deletion others had forgotten, and one of
/// them put a link there. What told of the file's mode and owner was gone, and each node gave it its own.
#[test]
fn the_writer_of_a_file_tells_its_access_again_where_nobody_does() {
    run(939_472, false).unwrap();
}

/// Found by seed 958075: a lost store found an older version of a file than the one whose deletion a wait told everybody of.
#[test]
fn a_wait_for_a_deletion_promises_nothing_of_an_older_version_that_a_lost_store_finds() {
    run(958_075, false).unwrap();
    run(951_577, false).unwrap();
}

/// Found by seed 968766: a user put a directory where a file was just replaced, and the disk let it neither be looked at nor put back.
/// What it held is in the vault, and no journal names it.
#[test]
fn a_directory_that_cannot_go_back_is_in_the_vault() {
    run(968_766, false).unwrap();
}

/// Found by seed 987716: a crash of the machine took a file, and before it came back from a peer a user wrote another: what is newer
/// by the clocks wins, and theirs was told as what the crash had left, which never does
/// (`troubles::what_is_written_where_a_crash_took_something_is_a_users`).
#[test]
fn what_users_write_where_a_crash_took_something_is_in_conflict_with_it() {
    run(987_716, false).unwrap();
}

/// Found by seed 1009049: a crash undid the first pairing of a root that follows a peer; what its user put there after the start is
/// found like all else.
#[test]
fn what_is_put_before_a_follower_pairs_once_more_is_found() {
    run(1_009_049, false).unwrap();
}

/// Found by seed 1047061: a long file took the place of a directory, and until it was read a peer's edit beneath it lost to what had
/// been there, and was gone with that (`two_trees::an_edit_that_lost_outlives_a_deletion_that_came_before_it`,
/// `reading::what_was_beneath_a_long_file_is_gone_before_it_is_read`).
#[test]
fn what_a_long_file_displaced_is_gone_before_a_peers_edit_of_it() {
    run(1_047_061, false).unwrap();
}

/// Found by seed 1066633: one of a file's two names became ignored, and what was written through it was not found under the other until
/// the next rescan (`troubles::a_change_through_a_name_that_nobody_watches_is_found_by_polling`).
#[test]
fn what_is_written_through_an_ignored_name_is_found_under_the_other() {
    run(1_066_633, false).unwrap();
}

/// Found by seed 1088398: a disk was put back to a moment when nobody had synced what a user had just written between two calls.
#[test]
fn what_nobody_had_synced_is_torn_on_a_disk_that_is_put_back() {
    run(1_088_398, false).unwrap();
}

/// Found by seed 1053365: a crash took a content that nobody else had yet, and a directory waited for it in place of a file.
#[test]
fn a_directory_that_waits_for_a_lost_content_counts_once() {
    run(1_053_365, false).unwrap();
}

/// Found by seed 1086519: what a sender's user removed covers what the sender passed over, also at the rest after that.
#[test]
fn what_a_sender_removed_stays_away() {
    run(1_086_519, false).unwrap();
}

/// Found by seed 1054551, a fault of the engine: see `renames::a_machine_put_back_hears_of_a_rename_that_it_told`.
#[test]
fn a_machine_put_back_after_it_told_a_rename_is_told_it() {
    run(1_054_551, false).unwrap();
}

/// Found by seed 1068714, a fault of the engine: see
/// `first::a_directory_that_only_a_follower_has_is_told_although_its_time_could_not_be_put_back`.
#[test]
fn a_directory_of_a_follower_is_told_although_its_time_is_owed() {
    run(1_068_714, false).unwrap();
}

/// Found by seed 1055110 (`troubles::a_machine_put_back_to_before_it_was_found_out_hears_of_what_it_taught`).
#[test]
fn a_machine_put_back_twice_is_told_what_it_taught() {
    run(1_055_110, false).unwrap();
}

/// Found by seed 1109803 (`ignore::what_goes_before_it_can_be_paired_comes_from_the_others`).
#[test]
fn what_a_writer_kept_while_rules_changed_comes_back_once_it_is_gone() {
    run(1_109_803, false).unwrap();
}

/// Found by seed 1105159: a node that had only sent lost its store before it took in what it had passed over.
#[test]
fn a_lost_store_finds_what_its_node_passed_over_while_it_only_sent() {
    run(1_105_159, false).unwrap();
}

/// Found by seed 1135475: a user took away what alone kept a directory in place of a file, then waited while they still saw the
/// directory.
#[test]
fn a_directory_goes_with_what_it_was_there_for() {
    run(1_135_475, false).unwrap();
}

/// Found by seed 1136809: a disk failed before the journal had the first pairing of a root that follows a peer; what its user put there
/// before it was open again is found like all else.
#[test]
fn what_is_put_before_a_follower_that_failed_pairs_once_more_is_found() {
    run(1_136_809, false).unwrap();
}

/// Found by seed 1149989: a directory that a lost store found displaced a file, then all stores were lost, and only a node that
/// receives still has the directory; the file is in the vault.
#[test]
fn what_a_found_directory_displaced_is_in_the_vault() {
    run(1_149_989, false).unwrap();
}

/// Found by seed 1189854, a fault of the engine: see
/// `rescan::what_was_read_in_a_directory_in_a_files_place_that_is_renamed_meanwhile_does_not_return`.
#[test]
fn a_directory_in_a_files_place_that_is_taken_away_while_it_is_read_does_not_return() {
    run(1_189_854, false).unwrap();
}

/// Found by seed 1241933, a fault of the engine: see
/// `troubles::a_name_that_a_peers_version_took_does_not_stand_for_one_that_nobody_watches`.
#[test]
fn a_change_through_a_name_that_becomes_ignored_when_a_peer_took_another_name_is_found() {
    run(1_241_933, false).unwrap();
}

/// Found by seeds 1255335 and 1264360: a store that is put back knows what it had made durable, not what its agent had merged.
#[test]
fn what_was_deleted_and_not_durable_returns_with_an_older_store() {
    run(1_255_335, false).unwrap();
    run(1_264_360, false).unwrap();
}

/// Found by seeds 1246631 and 1257338: what an old disk holds is known to be old, and a directory on it pairs.
#[test]
fn a_wait_says_nothing_of_what_a_disk_that_went_back_holds() {
    run(1_246_631, false).unwrap();
    run(1_257_338, false).unwrap();
}
