//! How a [`StateMachine`] with files must react to damage of a file while the machine is closed.
//!
//! A file is lost, cut, or replaced by an older copy or by another file. The machine may then refuse to open, open with the
//! state of an earlier log position, or fail at the first read of the damage. It must never show a state that its log
//! position never had.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{NewStateMachine, StateMachineFixture, entry, meta, position};
use towline_engine::snapshot_store::SnapshotMeta;
use towline_engine::state_machine::{ApplyBatch, Replies, StateMachine};

/// A state machine under test that keeps files.
pub trait FilesFixture: StateMachineFixture {
    /// The directory with all files of the machine and no others.
    fn dir(&self) -> PathBuf;

    /// Opens the machine on its directory.
    ///
    /// # Errors
    /// Why the machine refuses to open.
    fn try_open(&mut self) -> Result<Self::Machine, String>;

    /// Like [`StateMachineFixture::contents`], with errors.
    ///
    /// # Errors
    /// Why a value could not be read.
    fn try_contents(&self, view: &<Self::Machine as StateMachine>::View) -> Result<Vec<u8>, String>;
}

/// Makes a module with one `#[test]` for each kind of damage to the files of a machine. The second argument makes an empty
/// [`FilesFixture`](crate::suites::state_machine::files::FilesFixture).
#[macro_export]
macro_rules! state_machine_files_suite {
    ($module:ident, $new:expr) => {
        $crate::__suite!(state_machine_files, $module, &mut $new;
            no_value_is_wrong_after_a_file_was_lost
            no_value_is_wrong_after_a_file_was_cut
            no_value_is_wrong_after_a_file_was_replaced_by_an_older_copy
            no_value_is_wrong_after_a_file_was_replaced_by_another
        );
    };
}

/// The last index of the log when the file is damaged.
const REACHED: u64 = 8;
/// The index that the machine reaches afterwards. It flushes after each second command, because a merge must not bring old
/// values back.
const LAST: u64 = 14;
/// The index of the snapshot with which one history begins.
const RESTORED: u64 = 5;

/// The bytes of a file without trailing zeros, and its length. Files are often allocated ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileContent {
    bytes: Vec<u8>,
    length: u64,
}

/// The files of a machine, by their path in the directory.
type FilesImage = BTreeMap<PathBuf, FileContent>;

fn image(dir: &Path) -> FilesImage {
    let (mut files, mut dirs) = (FilesImage::new(), vec![dir.to_owned()]);
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let mut bytes = fs::read(&path).unwrap();
            let length = bytes.len() as u64;
            bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
            files.insert(path.strip_prefix(dir).unwrap().to_owned(), FileContent { bytes, length });
        }
    }
    files
}

fn write_image(dir: &Path, files: &FilesImage) {
    if dir.exists() {
        fs::remove_dir_all(dir).unwrap();
    }
    fs::create_dir_all(dir).unwrap();
    for (name, content) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &content.bytes).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(content.length).unwrap();
    }
}

/// A closed machine at [`REACHED`], and how it got there.
struct FilesHistory {
    name: &'static str,
    files: FilesImage,
    /// Earlier files, oldest first.
    older: Vec<FilesImage>,
    /// The log starts after this index.
    begins_after: u64,
    snapshot: Option<(SnapshotMeta, Vec<u8>)>,
}

/// The states and replies of an undamaged machine.
struct Expected {
    contents: BTreeMap<u64, Vec<u8>>,
    replies: BTreeMap<u64, Vec<u8>>,
    histories: Vec<FilesHistory>,
}

fn apply<F: FilesFixture>(fixture: &F, machine: &mut F::Machine, index: u64) -> Result<Vec<u8>, String> {
    let entries = [entry(fixture, index)];
    let mut replies = Replies::with_capacity(1);
    machine.apply(ApplyBatch::new(&entries, position(index)), &mut replies).map_err(|e| e.to_string())?;
    Ok(replies.into_vec().iter().map(|reply| fixture.reply(reply)).next().expect("a reply"))
}

fn expected<F: FilesFixture>(new: NewStateMachine<'_, F>) -> Expected {
    let mut fixture = new();
    let mut machine = fixture.open();
    let (mut contents, mut replies) = (BTreeMap::new(), BTreeMap::new());
    let mut snapshot = None;
    for index in 1..=LAST {
        replies.insert(index, apply(&fixture, &mut machine, index).unwrap());
        contents.insert(index, fixture.contents(&machine.view()));
        if index == RESTORED {
            let mut body = Vec::new();
            machine.snapshot().unwrap().write_to(&mut body).unwrap();
            snapshot = Some((meta(index, &body), body));
        }
    }
    drop(machine);
    let histories = vec![history(new, "applied", None), history(new, "restored", snapshot)];
    Expected { contents, replies, histories }
}

/// Applies commands with a restart after every two. A snapshot replaces the commands through [`RESTORED`].
fn history<F: FilesFixture>(
    new: NewStateMachine<'_, F>,
    name: &'static str,
    snapshot: Option<(SnapshotMeta, Vec<u8>)>,
) -> FilesHistory {
    let mut fixture = new();
    let mut older = Vec::new();
    let mut index = 0;
    while index < REACHED {
        let mut machine = fixture.open();
        assert_eq!(
            machine.durable(),
            position(index),
            "{name}: this suite is for machines that store what they flush"
        );
        match &snapshot {
            Some((meta, body)) if index == 2 => {
                machine.restore(meta, &mut body.as_slice()).unwrap();
                older.push(image(&fixture.dir()));
                index = RESTORED;
            }
            _ => {}
        }
        for _ in 0..2.min(REACHED - index) {
            index += 1;
            apply(&fixture, &mut machine, index).unwrap();
        }
        machine.flush().unwrap();
        drop(machine);
        older.push(image(&fixture.dir()));
    }
    let files = older.pop().unwrap();
    let begins_after = if snapshot.is_some() { RESTORED } else { 0 };
    FilesHistory { name, files, older, begins_after, snapshot }
}

/// Opens the machine on damaged files, applies the log like the engine, and continues. The machine may fail at any time, but
/// its states and replies before must be right.
fn go_on<F: FilesFixture>(
    fixture: &mut F,
    expected: &Expected,
    history: &FilesHistory,
    case: &str,
) -> Result<(), String> {
    let mut machine = fixture.try_open()?;
    let durable = machine.durable();
    assert!(
        durable == position(durable.index) && durable.index <= REACHED,
        "{case}: the machine claims to be at {durable:?}"
    );
    let mut at = durable.index;
    if at < history.begins_after {
        let (meta, body) = history.snapshot.as_ref().expect("the log is whole without one");
        machine.restore(meta, &mut body.as_slice()).map_err(|e| e.to_string())?;
        at = RESTORED;
    }
    let seen = |fixture: &F, machine: &F::Machine, at: u64| {
        let Some(right) = expected.contents.get(&at) else { return Ok(()) };
        let contents = fixture.try_contents(&machine.view())?;
        assert!(contents == *right, "{case}: at {at} the machine shows a state that it never had there");
        Ok::<_, String>(())
    };
    seen(fixture, &machine, at)?;
    while at < LAST {
        at += 1;
        let reply = apply(fixture, &mut machine, at)?;
        assert!(Some(&reply) == expected.replies.get(&at), "{case}: the answer to command {at} is wrong");
        seen(fixture, &machine, at)?;
        if at > REACHED && at % 2 == 0 {
            machine.flush().map_err(|e| e.to_string())?;
        }
    }
    drop(machine);
    let machine = fixture.try_open()?;
    assert_eq!(machine.durable(), position(LAST), "{case}: opened again");
    seen(fixture, &machine, LAST)
}

/// Damages each file of each history. `damage` returns the ways to damage one file: a name, and the files afterwards.
fn damage_each<F: FilesFixture>(
    new: NewStateMachine<'_, F>,
    damage: impl Fn(&FilesHistory, &Path) -> Vec<(String, FilesImage)>,
) {
    let expected = expected(new);
    for history in &expected.histories {
        let mut sound = new();
        write_image(&sound.dir(), &history.files);
        go_on(&mut sound, &expected, history, history.name)
            .unwrap_or_else(|error| panic!("{}, undamaged: {error}", history.name));
        let mut cases = 0;
        for name in history.files.keys() {
            for (how, files) in damage(history, name) {
                let case = format!("{}, {} {how}", history.name, name.display());
                let mut fixture = new();
                write_image(&fixture.dir(), &files);
                // Errors are allowed.
                let _ = go_on(&mut fixture, &expected, history, &case);
                cases += 1;
            }
        }
        assert!(cases > 0, "{}: there is no file to damage", history.name);
    }
}

fn with(history: &FilesHistory, name: &Path, content: FileContent) -> FilesImage {
    let mut files = history.files.clone();
    files.insert(name.to_owned(), content);
    files
}

pub fn no_value_is_wrong_after_a_file_was_lost<F: FilesFixture>(new: NewStateMachine<'_, F>) {
    damage_each(new, |history, name| {
        let mut files = history.files.clone();
        files.remove(name);
        vec![("lost".into(), files)]
    });
}

pub fn no_value_is_wrong_after_a_file_was_cut<F: FilesFixture>(new: NewStateMachine<'_, F>) {
    damage_each(new, |history, name| {
        let whole = &history.files[name];
        let used = whole.bytes.len();
        let cuts = [0, used / 2, used.saturating_sub(1)];
        let cuts = cuts.into_iter().filter(|cut| *cut < used || whole.length > 0 && *cut == 0);
        let cut = |cut: usize| {
            let content = FileContent { bytes: whole.bytes[..cut].to_vec(), length: cut as u64 };
            (format!("cut at {cut} of {used}"), with(history, name, content))
        };
        cuts.map(cut).collect()
    });
}

pub fn no_value_is_wrong_after_a_file_was_replaced_by_an_older_copy<F: FilesFixture>(
    new: NewStateMachine<'_, F>,
) {
    damage_each(new, |history, name| {
        let mut copies: Vec<(String, FileContent)> = Vec::new();
        for (number, older) in history.older.iter().enumerate() {
            let Some(content) = older.get(name) else { continue };
            if *content != history.files[name] && !copies.iter().any(|(_, known)| known == content) {
                copies.push((format!("of image {number}"), content.clone()));
            }
        }
        // Also with the removed files of that time, as in a partly restored backup.
        let mut all = Vec::new();
        for (how, content) in copies {
            let mut files = with(history, name, content);
            all.push((how.clone(), files.clone()));
            history.older.iter().flatten().for_each(|(name, content)| {
                files.entry(name.clone()).or_insert_with(|| content.clone());
            });
            all.push((format!("{how}, with files that were gone"), files));
        }
        all
    });
}

pub fn no_value_is_wrong_after_a_file_was_replaced_by_another<F: FilesFixture>(new: NewStateMachine<'_, F>) {
    damage_each(new, |history, name| {
        let mine = &history.files[name];
        let others: Vec<_> = history.files.iter().filter(|(_, content)| *content != mine).collect();
        let next = others.iter().find(|(other, _)| other.as_path() > name).or(others.first());
        let namesakes = others.iter().filter(|(other, _)| other.file_name() == name.file_name());
        let mut all = Vec::new();
        for (other, content) in namesakes.chain(next) {
            let mut files = with(history, name, (*content).clone());
            all.push((format!("replaced by {}", other.display()), files.clone()));
            if other.as_path() > name {
                files.insert((*other).clone(), mine.clone());
                all.push((format!("exchanged with {}", other.display()), files));
            }
        }
        all
    });
}
