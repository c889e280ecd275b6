//! `strftime` for templates that put a date, of a moment that is pinned when the template is built.

/// Seconds since 1970-01-01 00:00:00, read as a calendar without a time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub i64);

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
const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

struct Civil {
    year: i64,
    month: usize,
    day: i64,
    /// Monday is 0.
    weekday: usize,
    /// From 1.
    day_of_year: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Moment {
    /// The system's clock, in UTC.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0)))
    }

    /// Formats as Python's `datetime.strftime` does in the C locale; an unknown directive is kept.
    pub fn strftime(self, format: &str) -> String {
        let at = self.civil();
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(char) = chars.next() {
            if char != '%' {
                out.push(char);
                continue;
            }
            match chars.next() {
                None => out.push('%'),
                Some('-') => match chars.next() {
                    Some(directive) => {
                        let padded = at.directive(directive, self);
                        let bare = padded.trim_start_matches('0');
                        out.push_str(if bare.is_empty() { "0" } else { bare });
                    }
                    None => out.push_str("%-"),
                },
                Some(directive) => out.push_str(&at.directive(directive, self)),
            }
        }
        out
    }

    /// Days to a calendar date: the usual algorithm on eras of 400 years, with years from March.
    fn civil(self) -> Civil {
        let (days, seconds) = (self.0.div_euclid(86_400), self.0.rem_euclid(86_400));
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * from_march + 2) / 153;
        let day = from_march - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let month = usize::try_from(month - 1).unwrap_or(0).min(11);
        Civil {
            year,
            month,
            day,
            weekday: usize::try_from((days + 3).rem_euclid(7)).unwrap_or(0),
            day_of_year: before[month] + day + i64::from(leap && month > 1),
            hour: seconds / 3_600,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }
}

impl Civil {
    fn directive(&self, directive: char, moment: Moment) -> String {
        let (month, day) = (MONTHS[self.month], DAYS[self.weekday]);
        let hour12 = if self.hour % 12 == 0 { 12 } else { self.hour % 12 };
        match directive {
            'Y' => format!("{:04}", self.year),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'm' => format!("{:02}", self.month + 1),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'B' => month.to_string(),
            'b' | 'h' => month[..3].to_string(),
            'A' => day.to_string(),
            'a' => day[..3].to_string(),
            'w' => ((self.weekday + 1) % 7).to_string(),
            'u' => (self.weekday + 1).to_string(),
            'j' => format!("{:03}", self.day_of_year),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{hour12:02}"),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'f' => "000000".to_string(),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_string(),
            'F' => moment.strftime("%Y-%m-%d"),
            'T' | 'X' => moment.strftime("%H:%M:%S"),
            'D' | 'x' => moment.strftime("%m/%d/%y"),
            'R' => moment.strftime("%H:%M"),
            'c' => moment.strftime("%a %b %e %H:%M:%S %Y"),
            'n' => "\n".to_string(),
            't' => "\t".to_string(),
            'z' | 'Z' => String::new(),
            's' => moment.0.to_string(),
            '%' => "%".to_string(),
            other => format!("%{other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0, "01 Jan 1970 Thursday 001 00:00:00"),
            (951_782_400, "29 Feb 2000 Tuesday 060 00:00:00"),
            (1_721_995_199, "26 Jul 2024 Friday 208 11:59:59"),
            (1_735_603_200, "31 Dec 2024 Tuesday 366 00:00:00"),
            (-86_400, "31 Dec 1969 Wednesday 365 00:00:00"),
            (4_102_444_800, "01 Jan 2100 Friday 001 00:00:00"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(Moment(seconds).strftime("%d %b %Y %A %j %H:%M:%S"), expected);
        }
        assert_eq!(
            Moment(1_721_995_199).strftime("%-d/%-m/%y %I %p %B %F %% %q %"),
            "26/7/24 11 AM July 2024-07-26 % %q %"
        );
    }
}
