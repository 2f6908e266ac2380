//! Dates for chat templates that print today's.

/// Formats a Unix time (UTC) as C's `strftime` does in the C locale, for the conversions that
/// dates and times of day need. The error names one that is not known.
pub(super) fn strftime(format: &str, unix_seconds: u64) -> Result<String, UnknownConversion> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    // The epoch was a Thursday.
    const DAYS: [&str; 7] = [
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "Monday",
        "Tuesday",
        "Wednesday",
    ];
    let days = unix_seconds / 86_400;
    let (year, month, day) = civil(days);
    let second = unix_seconds % 86_400;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let month_name = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
    let day_name = DAYS.get((days % 7) as usize).copied().unwrap_or_default();
    let hour12 = (hour + 11) % 12 + 1;

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let piece = match chars.next() {
            Some('Y') => format!("{year}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name.chars().take(3).collect(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name.chars().take(3).collect(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{hour12:02}"),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".to_owned(),
            other => return Err(UnknownConversion(other)),
        };
        out.push_str(&piece);
    }
    Ok(out)
}

/// A conversion that [`strftime`] does not know.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("strftime_now does not know the conversion %{}", .0.unwrap_or(' '))]
pub(super) struct UnknownConversion(Option<char>);

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Years are taken to begin in March, so that the leap day is the last one; then the lengths of
/// months repeat in a pattern of 153 days per five months.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let era = days / 146_097; // of 400 years
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        let at = |t| strftime("%A %d %b %Y %H:%M:%S %I%p %j", t);
        assert_eq!(at(0), Err(UnknownConversion(Some('j'))));
        let at = |t| strftime("%a %A %d %e %b %B %F %T %I%p %y%%", t).expect("known");
        assert_eq!(
            at(0),
            "Thu Thursday 01  1 Jan January 1970-01-01 00:00:00 12AM 70%"
        );
        assert_eq!(
            at(951_827_696),
            "Tue Tuesday 29 29 Feb February 2000-02-29 12:34:56 12PM 00%"
        );
    }

    #[test]
    fn days_follow_one_another_for_a_thousand_years() {
        let mut last = civil(0);
        for days in 1..366_000 {
            let (y, m, d) = civil(days);
            let next_day = (y, m) == (last.0, last.1) && d == last.2 + 1;
            let next_month = d == 1 && (y, m) == (last.0, last.1 + 1) && last.2 >= 28;
            let next_year = (m, d) == (1, 1) && y == last.0 + 1 && last.1 == 12 && last.2 == 31;
            assert!(next_day || next_month || next_year, "{last:?} {y}-{m}-{d}");
            last = (y, m, d);
        }
    }
}
