//! Times and sizes as the builders of drivers accept them.

pub(crate) mod duration;
pub(crate) mod size;

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::error::{DriverError, ErrorKind};

/// A time as options accept it: a [`Duration`], a text such as `"5m"`, or no limit.
///
/// Texts follow the npm package `ms`: `"500ms"`, `"30s"`, `"5m"`, `"2.5h"`, `"1d"`, `"1 week"`,
/// `"1y"`, in upper or lower case. A number without a unit is in milliseconds. `"forever"`, `"off"`
/// and `"none"`, like `None` and [`TimeSpan::NONE`], mean no limit: a ttl without end, no grace, no
/// timeout, or no background work. Only a ttl may be negative, which counts as 0.
///
/// Any other text is an error that names the option and the text. `build` returns it, or the
/// awaited call.
///
/// ```
/// use std::time::Duration;
///
/// use bentocache_driver::TimeSpan;
///
/// assert_eq!(TimeSpan::from("10m"), TimeSpan::from(Duration::from_secs(600)));
/// assert_eq!(TimeSpan::from("forever"), TimeSpan::NONE);
/// ```
///
/// A driver takes it in its setters; see [`OptionErrors`].
#[derive(Debug, Clone, PartialEq)]
pub struct TimeSpan(Given);

#[derive(Debug, Clone, PartialEq)]
enum Given {
    For(Duration),
    Below0(Box<str>),
    None,
    Bad(Box<str>),
}

/// The longest [`TimeSpan::duration`]. The sum of two such times never overflows.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

const A_TIME: &str = "a Duration or a text such as \"500ms\", \"30s\", \"5m\", \"2.5h\" or \"1d\"";

impl TimeSpan {
    /// No limit: no end for a ttl, no grace, no timeout.
    pub const NONE: Self = Self(Given::None);

    /// The time; `None` for no limit.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use bentocache_driver::TimeSpan;
    ///
    /// let limit = |time| TimeSpan::from(time).limit("prune_interval");
    /// assert_eq!(limit("1h")?, Some(Duration::from_secs(3600)));
    /// assert_eq!(limit("off")?, None);
    /// assert!(limit("-1h").is_err());
    /// # Ok::<_, bentocache_driver::InvalidOption>(())
    /// ```
    ///
    /// # Errors
    /// If the text is not a time, or if the time is negative. The error names this option.
    pub fn limit(self, option: &'static str) -> Result<Option<Duration>, InvalidOption> {
        match self.0 {
            Given::For(duration) => Ok(Some(duration)),
            Given::None => Ok(None),
            // A negative time is an error, not silently 0.
            Given::Below0(given) => {
                Err(InvalidOption { option, given, expected: "a time of 0 or more" })
            }
            Given::Bad(given) => Err(InvalidOption { option, given, expected: A_TIME }),
        }
    }

    /// The time, for an option that always has one, such as the timeout of a connection. More than
    /// 100 years counts as 100 years, so that a driver can add such times.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use bentocache_driver::TimeSpan;
    ///
    /// let time = |time| TimeSpan::from(time).duration("connect_timeout");
    /// assert_eq!(time("500ms")?, Duration::from_millis(500));
    /// assert!(time("none").is_err());
    /// assert!(time("0").is_err());
    /// # Ok::<_, bentocache_driver::InvalidOption>(())
    /// ```
    ///
    /// # Errors
    /// As [`limit`](Self::limit), and if there is no limit, or if the time is 0.
    pub fn duration(self, option: &'static str) -> Result<Duration, InvalidOption> {
        match self.limit(option)? {
            None => Err(InvalidOption { option, given: "none".into(), expected: A_TIME }),
            Some(Duration::ZERO) => {
                Err(InvalidOption { option, given: "0".into(), expected: "a time above 0" })
            }
            Some(time) => Ok(time.min(LONGEST)),
        }
    }

    /// As [`limit`](Self::limit), but a negative time counts as 0: a ttl in the past.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use bentocache_driver::TimeSpan;
    ///
    /// assert_eq!(TimeSpan::from("-5m").ttl("ttl")?, Some(Duration::ZERO));
    /// # Ok::<_, bentocache_driver::InvalidOption>(())
    /// ```
    ///
    /// # Errors
    /// If the text is not a time.
    pub fn ttl(self, option: &'static str) -> Result<Option<Duration>, InvalidOption> {
        match self.0 {
            Given::Below0(_) => Ok(Some(Duration::ZERO)),
            _ => self.limit(option),
        }
    }
}

impl From<Duration> for TimeSpan {
    fn from(duration: Duration) -> Self {
        Self(Given::For(duration))
    }
}

impl From<Option<Duration>> for TimeSpan {
    fn from(duration: Option<Duration>) -> Self {
        Self(duration.map_or(Given::None, Given::For))
    }
}

impl From<&str> for TimeSpan {
    fn from(text: &str) -> Self {
        Self(match duration::parse(text) {
            Some(parsed) if parsed.negative => Given::Below0(text.into()),
            Some(parsed) => Given::For(parsed.duration),
            None if ["forever", "off", "none"].iter().any(|w| text.eq_ignore_ascii_case(w)) => {
                Given::None
            }
            None => Given::Bad(text.into()),
        })
    }
}

impl From<String> for TimeSpan {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<&String> for TimeSpan {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

/// A number of bytes as options accept it: an integer, or a text such as `"100mb"` (1024-based).
///
/// ```
/// use bentocache_driver::ByteSize;
///
/// assert_eq!(ByteSize::from("100mb"), ByteSize::from(100 * 1024 * 1024_u64));
/// ```
///
/// A driver takes it in its setters; see [`OptionErrors`].
#[derive(Debug, Clone, PartialEq)]
pub struct ByteSize(Result<u64, Box<str>>);

impl ByteSize {
    /// The number of bytes.
    ///
    /// ```
    /// use bentocache_driver::ByteSize;
    ///
    /// assert_eq!(ByteSize::from("10mb").bytes("max_size")?, 10 << 20);
    /// assert!(ByteSize::from("ten").bytes("max_size").is_err());
    /// # Ok::<_, bentocache_driver::InvalidOption>(())
    /// ```
    ///
    /// # Errors
    /// If the text is not a size, or if the integer is negative. The error names this option.
    pub fn bytes(self, option: &'static str) -> Result<u64, InvalidOption> {
        let expected = "a number of bytes or a text such as \"512kb\", \"10mb\" or \"1gb\"";
        self.0.map_err(|given| InvalidOption { option, given, expected })
    }
}

impl From<u64> for ByteSize {
    fn from(bytes: u64) -> Self {
        Self(Ok(bytes))
    }
}

impl From<usize> for ByteSize {
    fn from(bytes: usize) -> Self {
        Self(Ok(bytes as u64))
    }
}

impl From<u32> for ByteSize {
    fn from(bytes: u32) -> Self {
        Self(Ok(bytes.into()))
    }
}

impl From<i32> for ByteSize {
    fn from(bytes: i32) -> Self {
        Self(u64::try_from(bytes).map_err(|_| bytes.to_string().into()))
    }
}

impl From<&str> for ByteSize {
    fn from(text: &str) -> Self {
        Self(size::parse(text).ok_or_else(|| text.into()))
    }
}

impl From<String> for ByteSize {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<&String> for ByteSize {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

/// The value of an option is invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidOption {
    /// The option's name.
    pub option: &'static str,
    /// The given value.
    pub given: Box<str>,
    /// The accepted values.
    pub expected: &'static str,
}

impl fmt::Display for InvalidOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { option, given, expected } = self;
        write!(f, "option `{option}`: cannot use {given:?}; give {expected}")
    }
}

impl Error for InvalidOption {}

/// The first invalid option of a driver's builder. The setters cannot fail; the driver checks this
/// in `connect` and before its first call.
///
/// ```
/// use std::time::Duration;
///
/// use bentocache_driver::{DriverError, ErrorKind, OptionErrors, TimeSpan};
///
/// struct Shelf {
///     timeout: Duration,
///     errors: OptionErrors,
/// }
///
/// impl Shelf {
///     fn new() -> Self {
///         Self { timeout: Duration::from_secs(5), errors: OptionErrors::default() }
///     }
///
///     fn timeout(mut self, timeout: impl Into<TimeSpan>) -> Self {
///         self.errors.set(&mut self.timeout, timeout.into().duration("timeout"));
///         self
///     }
///
///     async fn connect(&self) -> Result<(), DriverError> {
///         self.errors.check("shelf")
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// assert_eq!(Shelf::new().timeout("2s").timeout, Duration::from_secs(2));
/// let error = Shelf::new().timeout("soon").connect().await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Config);
/// assert!(error.to_string().starts_with("shelf: option `timeout`: cannot use \"soon\""));
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct OptionErrors(Option<InvalidOption>);

impl OptionErrors {
    /// Sets an option to this value, or keeps the error if it is the first one.
    pub fn set<T>(&mut self, option: &mut T, value: Result<T, InvalidOption>) {
        match value {
            Ok(value) => *option = value,
            Err(error) => drop(self.0.get_or_insert(error)),
        }
    }

    /// Whether every option is valid.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] with the first invalid option, after the name of the driver.
    pub fn check(&self, driver: &str) -> Result<(), DriverError> {
        match &self.0 {
            None => Ok(()),
            Some(error) => Err(DriverError::new(ErrorKind::Config, format!("{driver}: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_texts_name_the_option_and_the_text() {
        let error = TimeSpan::from("soon").limit("grace").unwrap_err().to_string();
        assert!(error.contains("grace") && error.contains("soon"), "{error}");
        let error = ByteSize::from("ten").bytes("max_size").unwrap_err().to_string();
        assert!(error.contains("max_size") && error.contains("ten"), "{error}");
        let error = ByteSize::from(-1).bytes("max_size").unwrap_err().to_string();
        assert!(error.contains("max_size") && error.contains("-1"), "{error}");
    }

    #[test]
    fn below_0_is_a_ttl_of_0_and_an_error_elsewhere() {
        assert_eq!(TimeSpan::from("-5m").ttl("ttl"), Ok(Some(Duration::ZERO)));
        assert!(TimeSpan::from("-5m").limit("timeout").is_err());
        assert!(TimeSpan::from("-5m").duration("timeout").is_err());
    }

    #[test]
    fn no_limit_has_many_names_and_is_no_duration() {
        for time in ["off", "None", "FOREVER"]
            .map(TimeSpan::from)
            .into_iter()
            .chain([TimeSpan::NONE, None::<Duration>.into()])
        {
            assert_eq!(time.clone().limit("prune_interval"), Ok(None));
            assert!(time.duration("timeout").is_err());
        }
    }

    #[test]
    fn a_duration_is_above_0_and_can_be_added() {
        let duration = |text| TimeSpan::from(text).duration("timeout");
        let error = duration("0s").unwrap_err().to_string();
        assert!(error.contains("`timeout`") && error.contains("above 0"), "{error}");
        let longest = duration("999999999999y").unwrap();
        assert!(std::time::Instant::now().checked_add(longest + longest).is_some());
    }

    #[test]
    fn the_first_invalid_option_is_reported() {
        let (mut errors, mut time) = (OptionErrors::default(), Duration::ZERO);
        assert!(errors.check("shelf").is_ok());
        errors.set(&mut time, TimeSpan::from("1s").duration("a"));
        assert!(errors.check("shelf").is_ok());
        errors.set(&mut time, TimeSpan::from("soon").duration("b"));
        errors.set(&mut time, TimeSpan::from("later").duration("c"));
        assert_eq!(time, Duration::from_secs(1));
        let error = errors.check("shelf").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with("shelf: option `b`: cannot use \"soon\""), "{error}");
    }
}
