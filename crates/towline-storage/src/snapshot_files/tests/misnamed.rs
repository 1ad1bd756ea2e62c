//! Files whose names do not fit what is in them: somebody renamed or copied them. They hide no sound file, are never
//! served, and do not go without a word.

use std::sync::atomic::AtomicBool;

use super::given_up::Lines;
use super::*;

const REMOVED: &str = "a corrupt snapshot file is removed";

fn named(group: GroupId, index: u64, term: u64, content: ContentId) -> String {
    Named::Complete { group, at: LogId { index, term }, content }.name()
}

fn name_of(meta: &SnapshotMeta) -> String {
    Named::complete(&meta.head, meta.content).name()
}

/// Names that the file of `meta` could be given by mistake, and that sort before it and behind it. All but the last four
/// keep its content.
fn wrong_names(meta: &SnapshotMeta) -> Vec<String> {
    let (LogId { index, term }, content) = (meta.head.at, meta.content);
    vec![
        named(GROUP, index - 1, term, content),
        named(GROUP, index + 1, term, content),
        named(GROUP, index, term - 1, content),
        named(GROUP, index, term + 1, content),
        named(GROUP, index, term, ContentId([0; 16])),
        named(GROUP, index, term, ContentId([0xff; 16])),
        named(GroupId::new(0), index, term, content),
        named(GroupId::new(u64::MAX), index, term, content),
    ]
}

/// The bytes of a complete file, and what they are.
fn made(index: u64, seed: u8) -> (SnapshotMeta, Vec<u8>) {
    let dir = TempDir::new().unwrap();
    let meta = create(&open(dir.path()), &head(index), &body(CHUNK + 7, seed)).unwrap();
    let bytes = fs::read(dir.path().join(name_of(&meta))).unwrap();
    (meta, bytes)
}

/// What is said of files while `act` runs, and of which: the last part of what each line names.
fn said(act: impl FnOnce()) -> Vec<[String; 2]> {
    let lines = Lines::default();
    lines.hear(act);
    let said = lines.0.lock().unwrap().clone();
    said.into_iter().map(|[line, file]| [line, file.rsplit('/').next().unwrap().to_owned()]).collect()
}

/// The order in which a directory is listed is the file system's: so each order of writing, under several names each.
#[test]
fn copies_under_wrong_names_hide_no_sound_file_and_are_not_served() {
    for seed in 0..4 {
        let (older, older_bytes) = made(3, seed);
        let (meta, bytes) = made(5, seed);
        let mut all = wrong_names(&meta);
        all.push(name_of(&meta));
        for first in 0..all.len() {
            let dir = TempDir::new().unwrap();
            fs::write(dir.path().join(name_of(&older)), &older_bytes).unwrap();
            for name in all[first..].iter().chain(&all[..first]) {
                fs::write(dir.path().join(name), &bytes).unwrap();
            }
            let files = open(dir.path());
            let context = format!("{first} of {all:?}");
            assert_eq!(files.complete(GROUP).unwrap(), [meta.clone(), older.clone()], "{context}");
            assert_eq!(files.find(GROUP, meta.content).unwrap(), Some(meta.clone()), "{context}");
            assert!(read(&files, &meta) == body(CHUNK + 7, seed), "{context}");
            for at in [4, 6].map(|index| LogId { index, ..meta.head.at }) {
                let wrong = SnapshotMeta { head: SnapshotHead { at, ..meta.head.clone() }, ..meta.clone() };
                assert!(matches!(files.open(&wrong, 0), Err(SnapshotStoreError::Corrupt { .. })));
            }
            for content in [ContentId([0; 16]), ContentId([0xff; 16])] {
                assert!(matches!(files.find(GROUP, content), Err(SnapshotStoreError::Corrupt { .. })));
            }
            for group in [GroupId::new(0), GroupId::new(u64::MAX)] {
                assert_eq!(files.complete(group).unwrap(), []);
                assert!(matches!(files.find(group, meta.content), Err(SnapshotStoreError::Corrupt { .. })));
            }
        }
    }
}

/// The same in memory, where every order can be had.
#[test]
fn a_sound_file_is_found_in_whichever_order_files_of_its_content_are_met() {
    let (meta, _) = made(5, 1);
    let places = [4, 5, 6, 7];
    let mut orders = 0;
    for code in 0..4_usize.pow(4) {
        let order: Vec<u64> = (0..4).map(|digit| places[code / 4_usize.pow(digit) % 4]).collect();
        if BTreeSet::from_iter(&order).len() < order.len() {
            continue;
        }
        orders += 1;
        let mut index = Index::default();
        for place in &order {
            let told = if *place == 5 { Ok(meta.clone()) } else { Err("misnamed".into()) };
            let at = LogId { index: *place, ..meta.head.at };
            index.add(GROUP, meta.content, at, Complete::new(told));
        }
        assert_eq!(index.find(GROUP, meta.content).unwrap(), Some(meta.clone()), "{order:?}");
        assert_eq!(index.complete(GROUP), std::slice::from_ref(&meta), "{order:?}");
        index.pin(&meta).unwrap();
        let gone: BTreeSet<_> = index.retain(GROUP, &[]).iter().map(|gone| gone.named.name()).collect();
        let wrong = [4, 6, 7].map(|place| named(GROUP, place, meta.head.at.term, meta.content));
        assert_eq!(gone, wrong.into(), "what is being read stays: {order:?}");
        assert!(index.unpin(&meta));
        assert_eq!(index.take_unwanted(&meta).unwrap().named.name(), name_of(&meta));
    }
    assert_eq!(orders, 24);
}

/// A file of the same content stays as long as that is kept: which of them is the right one was not read. It used to be
/// forgotten, and lay there until the store was opened again, or for ever.
#[test]
fn what_is_not_kept_goes_under_every_name_and_the_log_names_it() {
    let (older, older_bytes) = made(3, 1);
    let (meta, bytes) = made(5, 1);
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(name_of(&older)), &older_bytes).unwrap();
    for name in wrong_names(&meta).iter().chain([&name_of(&meta)]) {
        fs::write(dir.path().join(name), &bytes).unwrap();
    }
    let mut opened = None;
    let found = said(|| opened = Some(open(dir.path())));
    assert_eq!(found.len(), 8, "{found:?}");
    assert!(found.iter().all(|[line, _]| line == "a snapshot file is corrupt"), "{found:?}");
    let files = opened.unwrap();

    let gone = said(|| files.retain(GROUP, &[meta.content]).unwrap());
    let wrong = wrong_names(&meta);
    let removed = |names: &[String]| names.iter().map(|n| [REMOVED.into(), n.clone()]).collect::<Vec<_>>();
    assert_eq!(gone, removed(&wrong[4..6]));
    let mut left: BTreeSet<_> = wrong[..4].iter().chain(&wrong[6..]).cloned().collect();
    left.insert(name_of(&meta));
    assert_eq!(names(dir.path()), left);
    assert!(read(&files, &meta) == body(CHUNK + 7, 1));

    let mut gone = said(|| files.retain(GROUP, &[]).unwrap());
    gone.sort();
    let mut expected = removed(&wrong[..4]);
    expected.sort();
    assert_eq!(gone, expected);
    assert_eq!(names(dir.path()), wrong[6..].iter().cloned().collect(), "those of other groups");
}

#[test]
fn two_files_of_the_same_place_are_both_there_and_under_each_others_names_both_corrupt() {
    let (one, one_bytes) = made(5, 1);
    let (two, two_bytes) = made(5, 2);
    let (third, third_bytes) = made(4, 3);
    let dir = TempDir::new().unwrap();
    let put = |meta: &SnapshotMeta, bytes| fs::write(dir.path().join(name_of(meta)), bytes).unwrap();
    put(&one, &one_bytes);
    put(&two, &two_bytes);
    put(&third, &third_bytes);
    let files = open(dir.path());
    assert_eq!(files.complete(GROUP).unwrap().len(), 3);
    assert!(read(&files, &one) == body(CHUNK + 7, 1) && read(&files, &two) == body(CHUNK + 7, 2));
    drop(files);
    put(&one, &two_bytes);
    put(&two, &one_bytes);
    let files = open(dir.path());
    assert_eq!(files.complete(GROUP).unwrap(), std::slice::from_ref(&third));
    for meta in [&one, &two] {
        assert!(matches!(files.find(GROUP, meta.content), Err(SnapshotStoreError::Corrupt { .. })));
        assert!(matches!(files.open(meta, 0), Err(SnapshotStoreError::Corrupt { .. })));
    }
    assert_eq!(receive(&files, &one, &body(CHUNK + 7, 1)).unwrap(), one);
    assert_eq!(files.complete(GROUP).unwrap(), [one.clone(), third]);
    assert!(read(&files, &one) == body(CHUNK + 7, 1));
}

/// Its two ends fit its name, so only its bytes tell that it is not what it says.
#[test]
fn a_file_that_is_made_to_fit_a_wrong_name_goes_once_the_content_is_received() {
    let (meta, bytes) = made(5, 1);
    let false_head = head(4);
    let header = |head: &SnapshotHead| Header { head: head.clone(), offered: None }.encode().unwrap();
    let forged = [header(&false_head).as_slice(), &bytes[header(&meta.head).len()..]].concat();
    let claim = SnapshotMeta { head: false_head, ..meta.clone() };
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(name_of(&claim)), forged).unwrap();
    let files = open(dir.path());
    assert_eq!(files.find(GROUP, meta.content).unwrap(), Some(claim.clone()));
    let reader = files.open(&claim, 0).unwrap();
    let body = body(CHUNK + 7, 1);
    receive(&files, &meta, &body).unwrap();
    assert_eq!(names(dir.path()), [name_of(&claim), name_of(&meta)].into(), "it is being read");
    assert_eq!(files.complete(GROUP).unwrap(), std::slice::from_ref(&meta), "and yet it is none");
    assert_eq!(files.find(GROUP, meta.content).unwrap(), Some(meta.clone()));
    assert!(files.open(&claim, 0).is_err());
    drop(reader);
    let gone = said(|| assert_eq!(receive(&files, &meta, &body).unwrap(), meta));
    assert_eq!(gone, [[REMOVED.to_owned(), name_of(&claim)]]);
    assert_eq!(names(dir.path()), [name_of(&meta)].into());
}

/// Syncs of directories fail while it says so.
struct Failing(AtomicBool);

impl Hook for Failing {
    fn before(&self, op: Op, path: &Path) -> io::Result<()> {
        let fails = op == Op::Sync && path.is_dir() && self.0.load(Ordering::Relaxed);
        if fails { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }

    fn after(&self, _: Op, _: &Path) {}
}

/// A misnamed file counted as an earlier one of the same name, and what was not durable stayed.
#[test]
fn a_file_that_does_not_get_durable_leaves_no_name_behind_beside_a_misnamed_one() {
    let (meta, bytes) = made(5, 1);
    let dir = TempDir::new().unwrap();
    let wrong = named(GROUP, 4, 2, meta.content);
    fs::write(dir.path().join(&wrong), bytes).unwrap();
    let failing = Arc::new(Failing(AtomicBool::new(false)));
    let files = open_with(dir.path(), FileOps::with_hook(failing.clone()));
    failing.0.store(true, Ordering::Relaxed);
    let refused = create(&files, &meta.head, &body(CHUNK + 7, 1));
    assert!(matches!(refused, Err(SnapshotStoreError::Io { .. })));
    assert_eq!(names(dir.path()), [wrong].into());
    failing.0.store(false, Ordering::Relaxed);
    create(&files, &meta.head, &body(CHUNK + 7, 1)).unwrap();
    assert_eq!(names(dir.path()), [name_of(&meta)].into());
}
