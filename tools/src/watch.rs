//! Shows the progress of a load, and checks the cluster at its end.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::sleep;

use crate::Result;
use crate::cluster::{Agreement, Cluster};
use crate::load::{self, Audit, Finished, Load};

/// The digest of a long run takes a part of it.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(120);
/// The interval of the progress bar.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// The interval of progress lines without a terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(2);

/// What the checks at the end found.
pub(crate) struct Conclusion {
    audit: Audit,
    agreement: Agreement,
}

/// Stops the load, looks for every acknowledged write, compares the nodes, and prints the findings.
pub(crate) async fn conclude(
    screen: &mut Screen,
    cluster: &mut Cluster,
    load: Load,
    begun: Instant,
) -> Result<Conclusion> {
    screen.bar.finish_and_clear();
    let Finished { histories, acked, uncertain } = load.stop().await?;
    let ran = begun.elapsed();
    let agreement = cluster.wait_equal(CATCH_UP_DEADLINE).await?;
    let audit = load::verify(&cluster.redis_addresses(), &histories).await?;
    for finding in &audit.findings {
        screen.say(format!("  {finding}"));
    }
    let equal = match &agreement {
        Agreement::Equal { applied, digest } => {
            let short: String = digest.chars().take(12).collect();
            format!("yes, at index {applied}, digest {short}")
        }
        Agreement::Differ(how) => format!("NO: {how}"),
    };
    let rate = acked as f64 / ran.as_secs_f64();
    screen.say(String::new());
    screen.say(format!("{:<26}{acked} in {:.1} s ({rate:.0}/s)", "acknowledged writes", ran.as_secs_f64()));
    screen.say(format!("{:<26}{uncertain}", "uncertain writes"));
    screen.say(format!("{:<26}{} of {} looked for", "acknowledged writes lost", audit.lost, audit.checked));
    screen.say(format!("{:<26}{}", "effects without a cause", audit.foreign));
    screen.say(format!("{:<26}{equal}", "all three nodes equal"));
    Ok(Conclusion { audit, agreement })
}

impl Conclusion {
    /// Returns an error unless all acknowledged writes were found and all nodes are equal.
    pub(crate) fn judge(self) -> Result<()> {
        let Self { audit, agreement } = self;
        if !audit.clean() {
            let (lost, foreign) = (audit.lost, audit.foreign);
            return Err(
                format!("{lost} acknowledged writes are lost, {foreign} effects have no cause").into()
            );
        }
        if audit.checked == 0 {
            return Err("no write was acknowledged: nothing is proven".into());
        }
        match agreement {
            Agreement::Equal { .. } => Ok(()),
            Agreement::Differ(how) => Err(format!("the nodes hold different data {how}").into()),
        }
    }
}

/// A progress bar on a terminal, plain lines elsewhere. It keeps all lines for the SVG.
pub(crate) struct Screen {
    pub(crate) bar: ProgressBar,
    pub(crate) lines: Vec<String>,
    plain: bool,
    last_plain: Instant,
    /// How long the load runs.
    millis: u64,
}

impl Screen {
    pub(crate) fn new(seconds: u64) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = if plain { ProgressBar::hidden() } else { ProgressBar::new(seconds * 1000) };
        if let Ok(style) = ProgressStyle::with_template("{bar:40.cyan/blue} {msg}") {
            bar.set_style(style);
        }
        Self { bar, lines: Vec::new(), plain, last_plain: Instant::now(), millis: seconds * 1000 }
    }

    pub(crate) fn say(&mut self, line: String) {
        self.bar.suspend(|| println!("{line}"));
        self.lines.push(line);
    }

    pub(crate) fn show(&mut self, load: &Load, begun: Instant) {
        let ran = begun.elapsed();
        let rate = load.acked() as f64 / ran.as_secs_f64().max(0.001);
        let message =
            format!("{:.0} s, {} writes acknowledged, {rate:.0}/s", ran.as_secs_f64(), load.acked());
        self.show_part(u64::try_from(ran.as_millis()).unwrap_or(u64::MAX), self.millis, &message);
    }

    /// Shows other progress than that of the load.
    pub(crate) fn show_part(&mut self, done: u64, of: u64, message: &str) {
        if self.plain && self.last_plain.elapsed() >= PLAIN_INTERVAL {
            self.last_plain = Instant::now();
            println!("{message}");
        }
        self.bar.set_length(of.max(1));
        self.bar.set_position(done);
        self.bar.set_message(message.to_owned());
    }

    /// Shows the load until it has run for `until`.
    pub(crate) async fn watch(&mut self, load: &Load, begun: Instant, until: Duration) {
        while begun.elapsed() < until {
            self.show(load, begun);
            sleep(TICK).await;
        }
    }
}
