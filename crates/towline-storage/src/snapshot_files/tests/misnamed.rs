//! Files whose names do not match their content, because a person renamed or copied them. They hide no sound file and are
//! never served, and the log names each one that is removed.

use std::sync::atomic::AtomicBool;

use super::log_lines::Lines;
use super::*;

const REMOVED: &str = "a corrupt snapshot file is removed";

fn named(group: GroupId, index: u64, term: u64, content: ContentId) -> String {
    Named::Complete { group, at: LogId { index, term }, content }.name()
}

fn name_of(meta: &SnapshotMeta) -> String {
    Named::complete(&meta.head, meta.content).name()
}

/// Wrong names for the file of `meta`, which sort before or after the right one. All but the last four keep its content.
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

/// A complete file: its meta and its bytes.
fn made(index: u64, seed: u8) -> (SnapshotMeta, Vec<u8>) {
    let (dir, files) = store();
    let meta = create(&files, &head(index), &body(CHUNK + 7, seed)).unwrap();
    let bytes = fs::read(dir.path().join(name_of(&meta))).unwrap();
    (meta, bytes)
}

/// The log lines while `act` runs, each with the file name in it.
fn logged(act: impl FnOnce()) -> Vec<[String; 2]> {
    let lines = Lines::default();
    lines.during(act);
    let lines = lines.0.lock().unwrap().clone();
    lines.into_iter().map(|[line, file]| [line, file.rsplit('/').next().unwrap().to_owned()]).collect()
}

/// The file system chooses the order of a listing, so the files are written in each order.
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

/// In memory, every order can be tested.
#[test]
fn the_index_finds_a_sound_file_in_any_order_of_insertion() {
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
            let found = if *place == 5 { Ok(meta.clone()) } else { Err("misnamed".into()) };
            let at = LogId { index: *place, ..meta.head.at };
            index.add(GROUP, meta.content, at, Complete::new(found));
        }
        assert_eq!(index.find(GROUP, meta.content).unwrap(), Some(meta.clone()), "{order:?}");
        assert_eq!(index.complete(GROUP), std::slice::from_ref(&meta), "{order:?}");
        index.pin(&meta).unwrap();
        let gone: BTreeSet<_> = index.retain(GROUP, &[]).iter().map(|gone| gone.named.name()).collect();
        let wrong = [4, 6, 7].map(|place| named(GROUP, place, meta.head.at.term, meta.content));
        assert_eq!(gone, wrong.into(), "a file with a reader stays: {order:?}");
        assert!(index.unpin(&meta));
        assert_eq!(index.take_unwanted(&meta).unwrap().named.name(), name_of(&meta));
    }
    assert_eq!(orders, 24);
}

/// The index used to lose such files, and they stayed. While a content is kept, all files with its name stay: none of them was
/// read to find the right one.
#[test]
fn an_unwanted_content_is_removed_under_all_its_names_and_the_log_names_each() {
    let (older, older_bytes) = made(3, 1);
    let (meta, bytes) = made(5, 1);
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(name_of(&older)), &older_bytes).unwrap();
    for name in wrong_names(&meta).iter().chain([&name_of(&meta)]) {
        fs::write(dir.path().join(name), &bytes).unwrap();
    }
    let mut opened = None;
    let found = logged(|| opened = Some(open(dir.path())));
    assert_eq!(found.len(), 8, "{found:?}");
    assert!(found.iter().all(|[line, _]| line == "a snapshot file is corrupt"), "{found:?}");
    let files = opened.unwrap();

    let gone = logged(|| files.retain(GROUP, &[meta.content]).unwrap());
    let wrong = wrong_names(&meta);
    let removed = |names: &[String]| names.iter().map(|n| [REMOVED.into(), n.clone()]).collect::<Vec<_>>();
    assert_eq!(gone, removed(&wrong[4..6]));
    let mut left: BTreeSet<_> = wrong[..4].iter().chain(&wrong[6..]).cloned().collect();
    left.insert(name_of(&meta));
    assert_eq!(names(dir.path()), left);
    assert!(read(&files, &meta) == body(CHUNK + 7, 1));

    let mut gone = logged(|| files.retain(GROUP, &[]).unwrap());
    gone.sort();
    let mut expected = removed(&wrong[..4]);
    expected.sort();
    assert_eq!(gone, expected);
    assert_eq!(names(dir.path()), wrong[6..].iter().cloned().collect(), "the files of other groups stay");
}

#[test]
fn two_files_of_one_log_position_are_both_found_and_corrupt_with_swapped_names() {
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

/// Header and trailer match the wrong name, so only the body reveals it.
#[test]
fn a_file_forged_for_a_wrong_name_is_removed_once_the_content_is_received() {
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
    assert_eq!(names(dir.path()), [name_of(&claim), name_of(&meta)].into(), "it has a reader");
    assert_eq!(files.complete(GROUP).unwrap(), std::slice::from_ref(&meta), "but it is not listed");
    assert_eq!(files.find(GROUP, meta.content).unwrap(), Some(meta.clone()));
    assert!(files.open(&claim, 0).is_err());
    drop(reader);
    let gone = logged(|| assert_eq!(receive(&files, &meta, &body).unwrap(), meta));
    assert_eq!(gone, [[REMOVED.to_owned(), name_of(&claim)]]);
    assert_eq!(names(dir.path()), [name_of(&meta)].into());
}

/// Syncs of directories fail while this is set.
struct FailingDirSync(AtomicBool);

impl Hook for FailingDirSync {
    fn before(&self, op: Op, path: &Path) -> io::Result<()> {
        let fails = op == Op::Sync && path.is_dir() && self.0.load(Ordering::Relaxed);
        if fails { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }
}

/// A misnamed file counted as an earlier file of the same name, so the file that was not durable stayed.
#[test]
fn a_file_whose_name_cannot_be_synced_is_removed_beside_a_misnamed_one() {
    let (meta, bytes) = made(5, 1);
    let dir = TempDir::new().unwrap();
    let wrong = named(GROUP, 4, 2, meta.content);
    fs::write(dir.path().join(&wrong), bytes).unwrap();
    let failing = Arc::new(FailingDirSync(AtomicBool::new(false)));
    let files = open_with(dir.path(), FileOps::with_hook(failing.clone()));
    failing.0.store(true, Ordering::Relaxed);
    let refused = create(&files, &meta.head, &body(CHUNK + 7, 1));
    assert!(matches!(refused, Err(SnapshotStoreError::Io { .. })));
    assert_eq!(names(dir.path()), [wrong].into());
    failing.0.store(false, Ordering::Relaxed);
    create(&files, &meta.head, &body(CHUNK + 7, 1)).unwrap();
    assert_eq!(names(dir.path()), [name_of(&meta)].into());
}
