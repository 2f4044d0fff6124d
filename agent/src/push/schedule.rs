//! When full checks are due: `03:30` each day, or a cron expression, in local time.

use chrono::{Datelike, Duration, NaiveDateTime, Timelike};

/// How far back a missed time is looked for, and how far ahead the next one.
const DAYS_MAX: i64 = 366;

/// Minutes at which something is due. Source: crontab(5).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Where days and weekdays are both restricted, either will do.
    either: bool,
}

impl Schedule {
    /// Reads `HH:MM` or five fields of cron.
    ///
    /// # Errors
    /// What is wrong, and what to say instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is no time: say 03:30, or minute hour day month weekday as cron does: 30 3 * * *");
        if let Some((hour, minute)) = text.split_once(':') {
            let number = |text: &str, max: u32| {
                let number =
                    text.parse::<u32>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()) && text.len() <= 2);
                number.filter(|n| *n <= max)
            };
            let (hour, minute) = number(hour, 23).zip(number(minute, 59)).ok_or_else(wrong)?;
            let all = u64::MAX;
            return Ok(Self {
                minutes: 1 << minute,
                hours: 1 << hour,
                days: all,
                months: all,
                weekdays: all,
                either: false,
            });
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else { return Err(wrong()) };
        let field = |text: &str, min: u32, max: u32| field(text, min, max).ok_or_else(wrong);
        let mut week = field(weekdays, 0, 7)?;
        week |= week >> 7 & 1;
        let schedule = Self {
            minutes: field(minutes, 0, 59)?,
            hours: field(hours, 0, 23)?,
            days: field(days, 1, 31)?,
            months: field(months, 1, 12)?,
            weekdays: week,
            either: !days.starts_with('*') && !weekdays.starts_with('*'),
        };
        let from = NaiveDateTime::default();
        // Eight years hold each date that there is.
        let some = schedule.days_from(from, DAYS_MAX * 8).next().is_some();
        if some { Ok(schedule) } else { Err(format!("'{text}' names no day that there is")) }
    }

    fn on_day(&self, at: NaiveDateTime) -> bool {
        let day = self.days >> at.day() & 1 == 1;
        let weekday = self.weekdays >> at.weekday().num_days_from_sunday() & 1 == 1;
        let both = if self.either { day || weekday } else { day && weekday };
        self.months >> at.month() & 1 == 1 && both
    }

    fn days_from(&self, from: NaiveDateTime, count: i64) -> impl Iterator<Item = NaiveDateTime> {
        (0..count).filter_map(move |n| from.checked_add_signed(Duration::days(n))).filter(|day| self.on_day(*day))
    }

    /// The first time behind `after`; none within a year.
    #[must_use]
    pub fn next(&self, after: NaiveDateTime) -> Option<NaiveDateTime> {
        let first = after.date();
        for day in self.days_from(first.and_hms_opt(0, 0, 0)?, DAYS_MAX) {
            for hour in (0..24).filter(|hour| self.hours >> hour & 1 == 1) {
                for minute in (0..60).filter(|minute| self.minutes >> minute & 1 == 1) {
                    let at = day.with_hour(hour)?.with_minute(minute)?;
                    if at > after {
                        return Some(at);
                    }
                }
            }
        }
        None
    }
}

/// A field of cron as bits: `*`, `*/5`, `1-5`, `1,3`, `1-9/2`.
fn field(text: &str, min: u32, max: u32) -> Option<u64> {
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, step.parse::<u32>().ok().filter(|step| *step > 0)?),
            None => (part, 1),
        };
        let (from, to) = match (range, range.split_once('-')) {
            ("*", _) => (min, max),
            (_, Some((from, to))) => (from.parse().ok()?, to.parse().ok()?),
            (one, None) => {
                let one: u32 = one.parse().ok()?;
                (one, if part.contains('/') { max } else { one })
            }
        };
        if from < min || to > max || from > to {
            return None;
        }
        for n in (from..=to).step_by(usize::try_from(step).ok()?) {
            bits |= 1 << n;
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> NaiveDateTime {
        NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").unwrap()
    }

    #[test]
    fn the_next_time_is_the_one_that_cron_would_take() {
        for (schedule, after, want) in [
            ("03:30", "2026-11-21 03:29:59", "2026-11-21 03:30:00"),
            ("03:30", "2026-11-21 03:30:00", "2026-11-22 03:30:00"),
            ("*/15 * * * *", "2026-11-21 23:50:01", "2026-11-22 00:00:00"),
            ("0 2 1 * *", "2026-11-21 00:00:00", "2026-12-01 02:00:00"),
            ("0 2 * * 7", "2026-11-21 00:00:00", "2026-11-22 02:00:00"),
            ("0 2 1 * 1-5/2", "2026-11-28 00:00:00", "2026-11-30 02:00:00"),
            ("5,10 4-6 29 2 *", "2027-12-01 00:00:00", "2028-02-29 04:05:00"),
        ] {
            assert_eq!(Schedule::parse(schedule).unwrap().next(at(after)), Some(at(want)), "{schedule}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "3",
            "24:00",
            "3:60",
            "+3:30",
            "* * * *",
            "60 * * * *",
            "0 0 0 * *",
            "*/0 * * * *",
            "0 0 31 2 *",
            "5-1 * * * *",
            "a b c d e",
        ] {
            assert!(Schedule::parse(text).is_err(), "{text}");
        }
    }
}
