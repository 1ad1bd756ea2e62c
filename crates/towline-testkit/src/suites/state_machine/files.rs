//! What a [`StateMachine`] with files must do when one of them is damaged while the machine is closed.
//!
//! A file is lost, cut, replaced by an older copy of itself or by another file. Then the machine may refuse to open; or
//! open at an earlier place, with the state of that place; or fail at the first read that touches the damage. It must
//! never show older values than its place says, nor values of two places at once.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Fixture, New, entry, meta, place};
use towline_engine::snapshot_store::SnapshotMeta;
use towline_engine::state_machine::{ApplyBatch, Replies, StateMachine};

/// A state machine under test that keeps files.
pub trait FilesFixture: Fixture {
    /// The directory that has all of its files and nothing else.
    fn dir(&self) -> PathBuf;

    /// Opens the machine on what the directory holds.
    ///
    /// # Errors
    /// Why the machine refuses to open.
    fn try_open(&mut self) -> Result<Self::Machine, String>;

    /// As [`Fixture::contents`].
    ///
    /// # Errors
    /// Why something could not be read.
    fn try_contents(&self, view: &<Self::Machine as StateMachine>::View) -> Result<Vec<u8>, String>;
}

/// One `#[test]` for each kind of damage to the files of a machine, in a module of its own. The second argument makes a
/// new, empty [`FilesFixture`](crate::suites::state_machine::files::FilesFixture).
#[macro_export]
macro_rules! state_machine_files_suite {
    ($module:ident, $new:expr) => {
        $crate::state_machine_files_suite!(@tests $module, $new;
            no_value_is_wrong_after_a_file_was_lost
            no_value_is_wrong_after_a_file_was_cut
            no_value_is_wrong_after_a_file_was_replaced_by_an_older_copy
            no_value_is_wrong_after_a_file_was_replaced_by_another
        );
    };
    (@tests $module:ident, $new:expr; $($check:ident)*) => {
        mod $module {
            use super::*;
            $(
                #[test]
                fn $check() {
                    $crate::suites::state_machine::files::$check(&mut $new);
                }
            )*
        }
    };
}

/// What the log of the group ends with while the damage is done.
const REACHED: u64 = 8;
/// How far the machine goes on afterwards, with a flush after each second command: merging what was flushed must not bring
/// anything back.
const LAST: u64 = 14;
/// Where the snapshot stands that one of the histories begins with.
const RESTORED: u64 = 5;

/// The bytes of a file without the zeros that it ends with, and its length: files are often allocated ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    bytes: Vec<u8>,
    length: u64,
}

/// The files of a machine, by their path in the directory.
type Image = BTreeMap<PathBuf, Content>;

fn image(dir: &Path) -> Image {
    let (mut files, mut dirs) = (Image::new(), vec![dir.to_owned()]);
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
            files.insert(path.strip_prefix(dir).unwrap().to_owned(), Content { bytes, length });
        }
    }
    files
}

fn write_image(dir: &Path, files: &Image) {
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

/// How a closed machine came to be at [`REACHED`].
struct History {
    name: &'static str,
    files: Image,
    /// Earlier ones, oldest first.
    older: Vec<Image>,
    /// The log has no entries up to here.
    begins_after: u64,
    snapshot: Option<(SnapshotMeta, Vec<u8>)>,
}

/// What a machine shows and answers that nothing happened to.
struct Expected {
    contents: BTreeMap<u64, Vec<u8>>,
    replies: BTreeMap<u64, Vec<u8>>,
    histories: Vec<History>,
}

fn apply<F: FilesFixture>(fixture: &F, machine: &mut F::Machine, index: u64) -> Result<Vec<u8>, String> {
    let entries = [entry(fixture, index)];
    let mut replies = Replies::with_capacity(1);
    machine.apply(ApplyBatch::new(&entries, place(index)), &mut replies).map_err(|e| e.to_string())?;
    Ok(replies.into_vec().iter().map(|reply| fixture.reply(reply)).next().expect("a reply"))
}

fn expected<F: FilesFixture>(new: New<'_, F>) -> Expected {
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

/// Some commands, a restart after each two of them, a snapshot instead of those up to [`RESTORED`] if there is one.
fn history<F: FilesFixture>(
    new: New<'_, F>,
    name: &'static str,
    snapshot: Option<(SnapshotMeta, Vec<u8>)>,
) -> History {
    let mut fixture = new();
    let mut older = Vec::new();
    let mut index = 0;
    while index < REACHED {
        let mut machine = fixture.open();
        assert_eq!(
            machine.durable(),
            place(index),
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
    History { name, files, older, begins_after, snapshot }
}

/// Opens the machine on damaged files, brings it up to the end of the log as the engine does, and lets it go on. It may
/// stop with an error anywhere. What it shows and answers before must be right.
fn go_on<F: FilesFixture>(
    fixture: &mut F,
    expected: &Expected,
    history: &History,
    case: &str,
) -> Result<(), String> {
    let mut machine = fixture.try_open()?;
    let durable = machine.durable();
    assert!(
        durable == place(durable.index) && durable.index <= REACHED,
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
    assert_eq!(machine.durable(), place(LAST), "{case}: opened once more");
    seen(fixture, &machine, LAST)
}

/// Damages each file of each history. `damage` gives the ways to do it to one file: a name, and the files afterwards.
fn damage_each<F: FilesFixture>(new: New<'_, F>, damage: impl Fn(&History, &Path) -> Vec<(String, Image)>) {
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
                // An error is an answer.
                let _ = go_on(&mut fixture, &expected, history, &case);
                cases += 1;
            }
        }
        assert!(cases > 0, "{}: there is no file to damage", history.name);
    }
}

fn with(history: &History, name: &Path, content: Content) -> Image {
    let mut files = history.files.clone();
    files.insert(name.to_owned(), content);
    files
}

pub fn no_value_is_wrong_after_a_file_was_lost<F: FilesFixture>(new: New<'_, F>) {
    damage_each(new, |history, name| {
        let mut files = history.files.clone();
        files.remove(name);
        vec![("lost".into(), files)]
    });
}

pub fn no_value_is_wrong_after_a_file_was_cut<F: FilesFixture>(new: New<'_, F>) {
    damage_each(new, |history, name| {
        let whole = &history.files[name];
        let used = whole.bytes.len();
        let cuts = [0, used / 2, used.saturating_sub(1)];
        let cuts = cuts.into_iter().filter(|cut| *cut < used || whole.length > 0 && *cut == 0);
        let cut = |cut: usize| {
            let content = Content { bytes: whole.bytes[..cut].to_vec(), length: cut as u64 };
            (format!("cut at {cut} of {used}"), with(history, name, content))
        };
        cuts.map(cut).collect()
    });
}

pub fn no_value_is_wrong_after_a_file_was_replaced_by_an_older_copy<F: FilesFixture>(new: New<'_, F>) {
    damage_each(new, |history, name| {
        let mut copies: Vec<(String, Content)> = Vec::new();
        for (number, older) in history.older.iter().enumerate() {
            let Some(content) = older.get(name) else { continue };
            if *content != history.files[name] && !copies.iter().any(|(_, known)| known == content) {
                copies.push((format!("of image {number}"), content.clone()));
            }
        }
        // With the files of then that are gone now, as a restored backup of some files has them.
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

pub fn no_value_is_wrong_after_a_file_was_replaced_by_another<F: FilesFixture>(new: New<'_, F>) {
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
