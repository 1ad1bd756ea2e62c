use std::collections::BTreeMap;

use super::*;

const HISTORIES: u64 = 12;
const STEPS: usize = 60;
const GROUPS: u64 = 3;

/// What a group must hold.
#[derive(Debug, Clone, Default, PartialEq)]
struct ModelGroup {
    entries: BTreeMap<u64, Entry>,
    recovered: Recovered,
}

impl ModelGroup {
    fn apply(&mut self, write: &GroupWrite) {
        if let Some(install) = &write.install {
            self.entries.clear();
            self.recovered.truncated = install.at;
            self.recovered.installing = Some(install.installing);
        }
        for entry in &write.entries {
            self.entries.retain(|&index, _| index < entry.index);
            self.entries.insert(entry.index, entry.clone());
        }
        if let Some(state) = write.hard_state {
            self.recovered.hard_state = Some(state);
        }
        if let Some(conf) = &write.conf {
            self.recovered.conf = Some(conf.clone());
        }
        if write.installed {
            self.recovered.installing = None;
        }
        self.settle();
    }

    fn compact(&mut self, through: u64) {
        if let Some(last) = self.entries.get(&through) {
            self.recovered.truncated = LogId { index: through, term: last.term };
            self.entries.retain(|&index, _| index > through);
            self.settle();
        }
    }

    fn settle(&mut self) {
        let last = self.entries.keys().next_back().copied();
        self.recovered.last_index = last.unwrap_or(self.recovered.truncated.index);
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

type Model = BTreeMap<u64, ModelGroup>;

pub fn any_sequence_of_calls_matches_the_model(new: NewLogStore<'_>) {
    let seeds: Vec<u64> = match std::env::var("TOWLINE_SEED") {
        Ok(seed) => vec![seed.parse().expect("TOWLINE_SEED is a number")],
        Err(_) => std::iter::repeat_with(|| fastrand::u64(..)).take(HISTORIES as usize).collect(),
    };
    for seed in seeds {
        let shown = ShowSeed(seed);
        history(new, seed);
        std::mem::forget(shown);
    }
}

/// Prints the seed of a failed run.
struct ShowSeed(u64);

impl Drop for ShowSeed {
    fn drop(&mut self) {
        #[allow(clippy::print_stderr)] // a failing test
        {
            eprintln!("repeat with TOWLINE_SEED={}", self.0);
        }
    }
}

fn history(new: NewLogStore<'_>, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut open = OpenLogStore::new(new);
    let mut model = Model::new();
    for term in 1..=STEPS as u64 {
        let group = rng.u64(1..=GROUPS);
        match rng.u32(0..20) {
            0..12 => {
                let mut batch = LogBatch::default();
                for group in 1..=GROUPS {
                    if rng.bool() {
                        let write = any_write(&mut rng, group, model.entry(group).or_default(), term);
                        model.entry(group).or_default().apply(&write);
                        batch.merge(write);
                    }
                }
                open.log().append(&mut batch).unwrap();
            }
            12..15 => {
                let held = model.entry(group).or_default();
                if let Some(through) = rng.choice(held.entries.keys().copied().collect::<Vec<_>>()) {
                    held.compact(through);
                    open.log().compact(GroupId::new(group), through).unwrap();
                    // Only the next append makes the compaction durable.
                    let state = hard_state(term, through);
                    held.recovered.hard_state = Some(state);
                    let write =
                        GroupWrite { hard_state: Some(state), ..GroupWrite::new(GroupId::new(group)) };
                    open.append([write]).unwrap();
                }
            }
            15 => {
                model.remove(&group);
                open.log().remove(GroupId::new(group)).unwrap();
            }
            16 | 17 => drop(open.log().purge().unwrap()),
            _ => open.crash(),
        }
        compare(&open, &model, &mut rng);
    }
}

fn any_write(rng: &mut fastrand::Rng, group: u64, held: &ModelGroup, term: u64) -> GroupWrite {
    let mut write = GroupWrite::new(GroupId::new(group));
    let (mut floor, mut last) = (held.recovered.truncated.index, held.recovered.last_index);
    if rng.u32(0..10) == 0 {
        let at = rng.u64(1..last + 10);
        write.install = Some(install(at, term));
        (floor, last) = (at, at);
    }
    if rng.u32(0..4) > 0 {
        let first = if rng.bool() { last + 1 } else { rng.u64(floor + 1..=last + 1) };
        write.entries = entries(first..=first + rng.u64(0..6), term);
        for entry in &mut write.entries {
            entry.data = vec![rng.u8(..); rng.usize(0..300)].into();
        }
    }
    write.hard_state = rng.bool().then(|| hard_state(term, floor));
    write.conf = (rng.u32(0..5) == 0).then(|| conf(floor));
    write.installed = rng.u32(0..5) == 0;
    write
}

fn compare(open: &OpenLogStore, model: &Model, rng: &mut fastrand::Rng) {
    let mut groups = open.log().groups().unwrap();
    groups.sort_unstable();
    // An `installed` without data may leave an empty group.
    groups.retain(|group| open.recover(*group) != Recovered::default());
    let expected = model.iter().filter(|(_, held)| !held.is_empty()).map(|(&id, _)| GroupId::new(id));
    assert_eq!(groups, expected.collect::<Vec<_>>());
    for (&id, held) in model {
        let group = GroupId::new(id);
        assert_eq!(open.recover(group), held.recovered, "group {id}");
        assert_eq!(open.all(group), held.entries.values().cloned().collect::<Vec<_>>(), "group {id}");
        let (first, last) = (held.recovered.truncated.index + 1, held.recovered.last_index);
        assert_eq!(open.log().term(group, first - 1).unwrap(), held.recovered.truncated.term);
        if first <= last {
            let (from, bytes_max) = (rng.u64(first..=last), rng.usize(0..2000));
            let mut bytes = 0;
            let fits: Vec<_> = held
                .entries
                .range(from..)
                .map(|(_, e)| e.clone())
                .take_while(|e| {
                    bytes += e.payload_bytes();
                    bytes <= bytes_max || e.index == from
                })
                .collect();
            assert_eq!(open.read(group, from, last + 1, bytes_max).unwrap(), fits, "group {id} from {from}");
            assert_eq!(open.log().term(group, from).unwrap(), held.entries[&from].term);
        }
    }
}
