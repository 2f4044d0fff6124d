//! Ignore rules that change: users write `.pleachignore`, which travels like any file.

use std::collections::BTreeMap;

use pleach_protocol::path::TreePath;
use pleach_store::ignore::{FILE_NAME, IgnoreRules};
use pleach_store::vfs::Kind;
use pleach_store::vfs::model::Seen;

use super::{Random, World};

/// One seed in so many has them; none of those where changes go one way.
const SEEDS: u64 = 10;
const PLACE: u64 = 3;
/// How often they change: once in so many steps.
const STEPS: u64 = 15;
const PATH: &str = ".pleachignore";
/// What users write.
const RULES: [&str; 6] = ["x\n", "k\n", "/d/e\n", "d/*\n!d/f\n", "y\nz\n", "# nothing\n"];
/// What is said of a directory that peers removed or replaced, where something ignored is left in it.
const KEPT: &str = "the directory cannot be removed: Directory not empty";

/// Whether users of a seed change the rules.
pub(super) const fn change(seed: u64) -> bool {
    seed % SEEDS == PLACE
}

/// Whether a problem stands for as long as rules and users leave things as they are.
pub(super) fn stands(problem: &str) -> bool {
    problem.starts_with(KEPT)
}

type Tree = BTreeMap<Vec<u8>, Seen>;

/// What of two disks is to be alike: not what is ignored, nor the directories above that.
pub(super) fn managed(left: &Tree, right: &Tree) -> [Tree; 2] {
    let Ok(mut rules) = IgnoreRules::new(&[]) else { return [left.clone(), right.clone()] };
    let file = left.get(FILE_NAME).filter(|seen| seen.kind == Kind::File);
    rules.set_file(&TreePath::ROOT, file.map(|seen| &seen.content[..]));
    let ignored = |(path, seen): &(&Vec<u8>, &Seen)| {
        TreePath::parse(path).is_ok_and(|path| rules.ignored(&path, seen.kind == Kind::Dir))
    };
    let all: Vec<Vec<u8>> = left.iter().chain(right).filter(ignored).map(|(path, _)| path.clone()).collect();
    let above = |path: &Vec<u8>| all.iter().any(|ignored| ignored.starts_with(&[path.as_slice(), b"/"].concat()));
    [left, right].map(|tree| {
        let kept = tree.iter().filter(|(path, _)| !all.contains(path) && !above(path));
        kept.map(|(path, seen)| (path.clone(), seen.clone())).collect()
    })
}

impl World {
    /// A user writes other rules now and then, in seeds where they do.
    pub(super) fn change_rules(&mut self) -> Result<(), String> {
        let mut random = Random::of_step(self.plan.seed ^ 0x0072_756c_6573, self.step);
        if !change(self.plan.seed) || !random.once_in(STEPS) {
            return Ok(());
        }
        let n = random.index(self.nodes.len());
        let disk = &self.nodes[n].model.disk;
        if disk.crashed() || !disk.is_mounted() || self.minted.only_reads(n) {
            return Ok(());
        }
        let (user, text) = (disk.user(), RULES[random.index(RULES.len())]);
        self.rest.begin(n);
        self.rest.wrote(text.as_bytes());
        let done = match random.below(4) {
            0 => user.remove(PATH),
            1 => user.write(PATH, text),
            _ => user.replace(PATH, text),
        };
        self.rest.touch(PATH);
        self.release_touched(n);
        self.say(format!("n{n} user: rules {text:?} {done:?}"));
        self.nodes[n].check_contents_kept(true)
    }
}
