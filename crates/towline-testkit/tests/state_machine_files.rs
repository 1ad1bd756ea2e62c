//! The suite that damages files of state machines: a machine with all checks passes it, and it finds each machine without one.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::common::*;
use towline_testkit::suites::state_machine::StateMachineFixture;
use towline_testkit::suites::state_machine::files::{self as suite, FilesFixture};
use towline_testkit::{state_machine_files_suite, state_machine_suite};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MissingCheck {
    None,
    /// A missing half counts as empty.
    IgnoresLostFiles,
    /// Checksums are ignored.
    IgnoresChecksums,
    /// A half does not name its log position.
    StoresThePositionApart,
    /// A half does not name its half.
    TakesEitherHalf,
    /// Unreadable halves count as empty at the stored log position.
    KeepsThePosition,
}

const HALVES: [&str; 2] = ["even", "odd"];
const CHECKSUM_BYTES: usize = 4;

/// Keeps one byte a command. Two files hold the halves, and the file `current` names them.
struct Halved {
    flaw: MissingCheck,
    dir: PathBuf,
    state: Arc<Mutex<Vec<u8>>>,
    applied: LogId,
    durable: LogId,
}

impl Halved {
    fn open(flaw: MissingCheck, dir: &Path) -> Result<Self, String> {
        let mut machine =
            Self { flaw, dir: dir.into(), state: Arc::default(), applied: LogId::NONE, durable: LogId::NONE };
        let current = match fs::read(dir.join("current")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(machine),
            current => current.map_err(|error| error.to_string())?,
        };
        let at = open_sealed(b"current", &current).ok_or("`current` is damaged")?;
        let (index, term) = at.split_first_chunk().ok_or("`current` is damaged")?;
        let term = u64::from_be_bytes(term.try_into().map_err(|_| "`current` is damaged")?);
        machine.applied = LogId { index: u64::from_be_bytes(*index), term };
        machine.durable = machine.applied;
        let halves = HALVES.map(|half| machine.read(half));
        let halves = match halves {
            [Ok(even), Ok(odd)] => [even, odd],
            _ if flaw == MissingCheck::KeepsThePosition => [Vec::new(), Vec::new()],
            [Err(error), _] | [_, Err(error)] => return Err(error),
        };
        let mut state = machine.state.lock().unwrap();
        for at in 0..halves[0].len().max(halves[1].len()) {
            state.extend(halves.iter().filter_map(|half| half.get(at)));
        }
        drop(state);
        Ok(machine)
    }

    fn file(&self, half: &str) -> PathBuf {
        let index = self.applied.index;
        match self.flaw {
            MissingCheck::StoresThePositionApart => self.dir.join(half),
            _ => self.dir.join(format!("{half}-{index}")),
        }
    }

    /// What the checksum of a half covers besides its bytes.
    fn name(&self, half: &str) -> Vec<u8> {
        match self.flaw {
            MissingCheck::StoresThePositionApart => half.into(),
            MissingCheck::TakesEitherHalf => self.applied.index.to_be_bytes().into(),
            _ => [half.as_bytes(), &self.applied.index.to_be_bytes()].concat(),
        }
    }

    fn read(&self, half: &str) -> Result<Vec<u8>, String> {
        let sealed = match fs::read(self.file(half)) {
            Err(_) if self.flaw == MissingCheck::IgnoresLostFiles => return Ok(Vec::new()),
            sealed => sealed.map_err(|error| format!("`{half}`: {error}"))?,
        };
        if self.flaw == MissingCheck::IgnoresChecksums {
            return Ok(sealed[..sealed.len().saturating_sub(CHECKSUM_BYTES)].to_vec());
        }
        open_sealed(&self.name(half), &sealed).ok_or_else(|| format!("`{half}` is damaged"))
    }

    fn store(&mut self) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let before: Vec<_> =
            fs::read_dir(&self.dir)?.map(|file| file.map(|f| f.path())).collect::<Result<_, _>>()?;
        for (parity, half) in HALVES.into_iter().enumerate() {
            let bytes: Vec<u8> = self.state.lock().unwrap().iter().skip(parity).step_by(2).copied().collect();
            fs::write(self.file(half), seal(&self.name(half), &bytes))?;
        }
        let at = [self.applied.index, self.applied.term].map(u64::to_be_bytes).concat();
        fs::write(self.dir.join("next"), seal(b"current", &at))?;
        fs::rename(self.dir.join("next"), self.dir.join("current"))?;
        self.durable = self.applied;
        let kept = [self.file(HALVES[0]), self.file(HALVES[1]), self.dir.join("current")];
        before.iter().filter(|old| !kept.contains(old)).try_for_each(fs::remove_file)
    }
}

fn seal(name: &[u8], bytes: &[u8]) -> Vec<u8> {
    let checksum = crc32c::crc32c_append(crc32c::crc32c(name), bytes);
    [bytes, &checksum.to_be_bytes()].concat()
}

fn open_sealed(name: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (bytes, _) = sealed.split_last_chunk::<CHECKSUM_BYTES>()?;
    (seal(name, bytes) == sealed).then(|| bytes.to_vec())
}

impl StateMachine for Halved {
    type Response = u64;
    type View = Arc<Mutex<Vec<u8>>>;

    fn view(&self) -> Self::View {
        self.state.clone()
    }

    fn durable(&self) -> LogId {
        self.durable
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<u64>) -> Result<(), Fatal> {
        let mut state = self.state.lock().unwrap();
        for command in batch.commands() {
            state.push(command.data[0]);
            replies.push(state.len() as u64);
        }
        self.applied = batch.through();
        Ok(())
    }

    fn flush(&mut self) -> Result<LogId, Fatal> {
        self.store()?;
        Ok(self.durable)
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Ok(Box::new(self.state.lock().unwrap().clone()))
    }

    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn Read) -> Result<(), Fatal> {
        let mut state = Vec::new();
        body.read_to_end(&mut state)?;
        *self.state.lock().unwrap() = state;
        self.applied = meta.head.at;
        Ok(self.store()?)
    }
}

struct Halves {
    flaw: MissingCheck,
    dir: tempfile::TempDir,
}

impl Halves {
    fn of(flaw: MissingCheck) -> Self {
        Self { flaw, dir: tempfile::tempdir().unwrap() }
    }
}

impl StateMachineFixture for Halves {
    type Machine = Halved;

    fn open(&mut self) -> Halved {
        self.try_open().unwrap()
    }

    fn crash(&mut self) {}

    fn command(&self, number: u64) -> Bytes {
        vec![number as u8 + 1].into()
    }

    fn contents(&self, view: &Arc<Mutex<Vec<u8>>>) -> Vec<u8> {
        view.lock().unwrap().clone()
    }

    fn reply(&self, reply: &u64) -> Vec<u8> {
        reply.to_be_bytes().to_vec()
    }
}

impl FilesFixture for Halves {
    fn dir(&self) -> PathBuf {
        self.dir.path().join("halves")
    }

    fn try_open(&mut self) -> Result<Halved, String> {
        Halved::open(self.flaw, &self.dir())
    }

    fn try_contents(&self, view: &Arc<Mutex<Vec<u8>>>) -> Result<Vec<u8>, String> {
        Ok(self.contents(view))
    }
}

state_machine_suite!(undamaged, || Halves::of(MissingCheck::None));
state_machine_files_suite!(without_a_flaw, || Halves::of(MissingCheck::None));

/// The check that must find each flaw.
macro_rules! found {
    ($($flaw:ident: $check:ident)*) => {
        #[allow(non_snake_case)] // named after the flaw
        mod found {
            use super::*;
            $(
                #[test]
                #[should_panic(expected = "the machine shows a state that it never had there")]
                fn $flaw() {
                    suite::$check(&mut || Halves::of(MissingCheck::$flaw));
                }
            )*
        }
    };
}

found! {
    IgnoresLostFiles: no_value_is_wrong_after_a_file_was_lost
    KeepsThePosition: no_value_is_wrong_after_a_file_was_lost
    IgnoresChecksums: no_value_is_wrong_after_a_file_was_cut
    StoresThePositionApart: no_value_is_wrong_after_a_file_was_replaced_by_an_older_copy
    TakesEitherHalf: no_value_is_wrong_after_a_file_was_replaced_by_another
}
