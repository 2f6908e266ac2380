//! Medians over rounds, as a table.

use crate::{LARGE, Outcome, Pattern, SMALL, TRANSPORTS, Transport};

/// Every outcome so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    outcomes: Vec<(Transport, Pattern, usize, Outcome)>,
}

impl Report {
    pub(crate) fn add(
        &mut self,
        transport: Transport,
        pattern: Pattern,
        bytes: usize,
        outcome: Outcome,
    ) {
        self.outcomes.push((transport, pattern, bytes, outcome));
    }

    fn median(
        &self,
        (transport, pattern, bytes): (Transport, Pattern, usize),
        value: fn(&Outcome) -> f64,
    ) -> Option<f64> {
        let mut values: Vec<f64> = self
            .outcomes
            .iter()
            .filter(|(t, p, b, _)| (*t, *p, *b) == (transport, pattern, bytes))
            .map(|(.., outcome)| value(outcome))
            .collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    pub(crate) fn print(&self) {
        let show = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
        println!(
            "{:<22}{:>10}{:>10}{:>12}{:>10}{:>9}{:>13}{:>13}",
            "", "64 B p50", "64 B p99", "1 MiB p50", "64 B", "1 MiB", "64 B", "1 MiB"
        );
        println!(
            "{:<22}{:>10}{:>10}{:>12}{:>10}{:>9}{:>13}{:>13}",
            "", "µs", "µs", "µs", "M/s", "GB/s", "in place ns", "in place ns"
        );
        for transport in TRANSPORTS {
            let typical = |pattern, bytes| self.median((transport, pattern, bytes), |o| o.typical);
            let micros = |ns: Option<f64>| show(ns.map(|ns| ns / 1e3));
            let p99 = self.median((transport, Pattern::Echo, SMALL), |o| o.p99);
            println!(
                "{:<22}{:>10}{:>10}{:>12}{:>10}{:>9}{:>13}{:>13}",
                transport.name(),
                micros(typical(Pattern::Echo, SMALL)),
                micros(p99),
                micros(typical(Pattern::Echo, LARGE)),
                show(typical(Pattern::Stream, SMALL).map(|ns| 1e3 / ns)),
                show(typical(Pattern::Stream, LARGE).map(|ns| LARGE as f64 / ns)),
                show(typical(Pattern::InPlace, SMALL)),
                show(typical(Pattern::InPlace, LARGE)),
            );
        }
        println!();
        for (ours, other) in [
            (Transport::RingSpin, Transport::IceoryxSpin),
            (Transport::RingSleep, Transport::IceoryxEvent),
            (Transport::RingSleep, Transport::Socket),
        ] {
            let ratio = |pattern, bytes| {
                let time = |transport| self.median((transport, pattern, bytes), |o| o.typical);
                show(
                    time(other)
                        .zip(time(ours))
                        .map(|(other, ours)| other / ours),
                )
            };
            println!(
                "{} against {}: latency 64 B {}x, 1 MiB {}x better; rate 64 B {}x, 1 MiB {}x",
                ours.name(),
                other.name(),
                ratio(Pattern::Echo, SMALL),
                ratio(Pattern::Echo, LARGE),
                ratio(Pattern::Stream, SMALL),
                ratio(Pattern::Stream, LARGE),
            );
        }
        let in_place = |bytes| {
            self.median((Transport::RingSpin, Pattern::InPlace, bytes), |o| {
                o.typical
            })
        };
        let growth = in_place(LARGE).zip(in_place(SMALL)).map(|(l, s)| l / s);
        println!(
            "{}: handing over 1 MiB in place costs {}x of handing over 64 B",
            Transport::RingSpin.name(),
            show(growth)
        );
    }
}
