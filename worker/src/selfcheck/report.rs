//! What a self-check found, for people and for programs.

use std::fmt;

use realm_cuda::check::Agreement;
use serde::Serialize;

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the device.
    pub device: String,
    /// Whether nothing differs and nothing failed. A target that is missed is no failure.
    pub passed: bool,
    /// What was compared.
    pub checks: Vec<Check>,
    /// What was measured.
    pub bench: Bench,
    /// What all of it took.
    pub seconds: f64,
}

/// Something that was compared.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// `kernels` or `models`.
    pub part: &'static str,
    /// Which of them.
    pub name: String,
    /// What is held against what.
    pub compares: String,
    /// How many numbers, or other facts, agree.
    pub compared: u64,
    /// Error of the number that came closest to its bound.
    pub error: f64,
    /// Its bound.
    pub bound: f64,
    /// Where it differs, or how it failed.
    pub fault: Option<String>,
    /// What it took.
    pub seconds: f64,
}

impl Check {
    pub(super) fn new(
        part: &'static str,
        name: impl Into<String>,
        compares: impl Into<String>,
        outcome: Result<Agreement, impl fmt::Display>,
        seconds: f64,
    ) -> Check {
        let (agreement, fault) = match outcome {
            Ok(agreement) => (agreement, None),
            Err(fault) => (Agreement::default(), Some(fault.to_string())),
        };
        Check {
            part,
            name: name.into(),
            compares: compares.into(),
            compared: agreement.compared,
            error: agreement.error,
            bound: agreement.bound,
            fault,
            seconds,
        }
    }
}

/// What was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Bench {
    /// The model and what it is held against, in a sentence.
    pub about: String,
    /// In the order of measuring.
    pub rows: Vec<Measured>,
    /// What was left out, for want of time or of what it needs.
    pub left_out: Vec<String>,
    /// How it failed, if it did.
    pub fault: Option<String>,
}

/// A measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// What was measured.
    pub name: String,
    /// How much it is, in `unit`.
    pub value: f64,
    /// The unit.
    pub unit: &'static str,
    /// What it is held against, in the same unit, if anything.
    pub roofline: Option<f64>,
    /// `value` as a part of `roofline`; for a share, itself.
    pub ratio: Option<f64>,
    /// What `ratio` should be.
    pub target: Option<Target>,
    /// Whether it is.
    pub met: Option<bool>,
}

/// What a ratio should be.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// So much or more.
    AtLeast(f64),
    /// So much or less.
    AtMost(f64),
}

impl Measured {
    /// Something that other things are held against.
    pub(super) fn plain(name: impl Into<String>, value: f64, unit: &'static str) -> Measured {
        Measured {
            name: name.into(),
            value,
            unit,
            roofline: None,
            ratio: None,
            target: None,
            met: None,
        }
    }

    /// Tokens a second, how many there could be, and which part of that there should be.
    pub(super) fn rate(name: String, value: f64, roofline: f64, least: f64) -> Measured {
        let ratio = value / roofline;
        Measured {
            roofline: Some(roofline),
            ratio: Some(ratio),
            target: Some(Target::AtLeast(least)),
            met: Some(ratio >= least),
            ..Measured::plain(name, value, "tokens/s")
        }
    }

    /// A part of something that should be small.
    pub(super) fn part(name: String, part: f64, most: f64) -> Measured {
        Measured {
            ratio: Some(part),
            target: Some(Target::AtMost(most)),
            met: Some(part <= most),
            ..Measured::plain(name, 100.0 * part, "%")
        }
    }
}

impl Report {
    pub(super) fn new(device: &str, checks: Vec<Check>, bench: Bench, seconds: f64) -> Report {
        let agrees = checks.iter().all(|check| check.fault.is_none());
        Report {
            device: device.into(),
            passed: agrees && !checks.is_empty() && bench.fault.is_none(),
            checks,
            bench,
            seconds,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.device)?;
        writeln!(
            f,
            "\n{:<8} {:<38} {:>12} {:>9} {:>9} {:>7}",
            "check", "", "compared", "error", "bound", "seconds"
        )?;
        for check in &self.checks {
            write!(f, "{:<8} {:<38} ", check.part, check.name)?;
            match &check.fault {
                Some(fault) => writeln!(f, "FAILED: {fault}")?,
                None => writeln!(
                    f,
                    "{:>12} {:>9.1e} {:>9.1e} {:>7.1}",
                    check.compared, check.error, check.bound, check.seconds
                )?,
            }
        }
        let failed = self.checks.iter().filter(|check| check.fault.is_some());
        let (failed, all) = (failed.count(), self.checks.len());
        writeln!(f, "{} of {all} checks passed", all - failed)?;
        self.bench.fmt(f)?;
        writeln!(f, "\n{:.0} s in all", self.seconds)
    }
}

impl fmt::Display for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}", self.about)?;
        writeln!(
            f,
            "{:<50} {:>12} {:<9} {:>12} {:>6} {:>7}",
            "bench", "measured", "", "roofline", "ratio", "target"
        )?;
        for row in &self.rows {
            let number = |value: Option<f64>, digits: usize| {
                value.map_or(String::new(), |value| format!("{value:.digits$}"))
            };
            let target = match row.target {
                None => String::new(),
                Some(Target::AtLeast(least)) => format!(">= {least:.2}"),
                Some(Target::AtMost(most)) => format!("<= {most:.2}"),
            };
            let missed = if row.met == Some(false) {
                " missed"
            } else {
                ""
            };
            let line = format!(
                "{:<50} {:>12.2} {:<9} {:>12} {:>6} {target:>7}{missed}",
                row.name,
                row.value,
                row.unit,
                number(row.roofline, 2),
                number(row.ratio, 2),
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        for name in &self.left_out {
            writeln!(f, "{name:<50} left out")?;
        }
        self.fault
            .as_ref()
            .map_or(Ok(()), |fault| writeln!(f, "FAILED: {fault}"))
    }
}

#[cfg(test)]
mod tests {
    use realm_cuda::check::Fault;

    use super::*;

    fn found() -> (Vec<Check>, Bench) {
        let right = Ok::<_, Fault>(Agreement {
            compared: 7,
            error: 1e-7,
            bound: 1e-6,
        });
        let checks = vec![Check::new("kernels", "norm", "a with b", right, 0.5)];
        let bench = Bench {
            rows: vec![
                Measured::rate("decode".into(), 2.0, 4.0, 0.8),
                Measured::part("idle".into(), 0.01, 0.05),
            ],
            left_out: vec!["prefill".into()],
            ..Bench::default()
        };
        (checks, bench)
    }

    #[test]
    fn a_missed_target_is_told_and_no_failure() {
        let (checks, bench) = found();
        let report = Report::new("a device", checks, bench, 1.0);
        assert!(report.passed);
        let text = report.to_string();
        let line = |name: &str| text.lines().find(|line| line.contains(name)).expect(name);
        assert!(line("decode").ends_with(">= 0.80 missed"), "{text}");
        assert!(line("idle").ends_with("<= 0.05"), "{text}");
        assert!(line("prefill").contains("left out"), "{text}");
        assert!(text.contains("1 of 1 checks passed"), "{text}");
    }

    #[test]
    fn what_differs_or_fails_is_a_failure() {
        let (mut checks, bench) = found();
        let fault = Err(Fault::Differs("3 of 7 differ".into()));
        checks.push(Check::new("models", "llama", "a with b", fault, 0.5));
        let report = Report::new("a device", checks, bench, 1.0);
        assert!(!report.passed);
        let text = report.to_string();
        assert!(text.contains("FAILED: 3 of 7 differ"), "{text}");
        assert!(text.contains("1 of 2 checks passed"), "{text}");
        let (checks, mut bench) = found();
        bench.fault = Some("the device failed".into());
        let report = Report::new("a device", checks, bench, 1.0);
        assert!(!report.passed && report.to_string().contains("FAILED: the device failed"));
        let report = Report::new("a device", Vec::new(), Bench::default(), 1.0);
        assert!(!report.passed, "what checks nothing proves nothing");
    }

    #[test]
    fn programs_read_it_as_json() {
        let (checks, bench) = found();
        let report = Report::new("a device", checks, bench, 1.0);
        let value = serde_json::to_value(report).expect("JSON");
        assert_eq!(value["passed"], true);
        assert_eq!(value["checks"][0]["name"], "norm");
        assert_eq!(value["checks"][0]["fault"], serde_json::Value::Null);
        assert_eq!(value["bench"]["rows"][0]["met"], false);
        assert_eq!(value["bench"]["rows"][1]["target"]["at_most"], 0.05);
    }
}
