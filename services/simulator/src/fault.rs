//! What a provider can do to a call, and the mixes that deal it out at random.

use rand::RngExt;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

/// What happens to one call. In JSON: `{"kind": "cut_after", "reset": true}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// No fault: accepted, answered.
    Accept,
    /// A Graph API error object. The code decides HTTP status and words, unless given (see [`code_words`]).
    Error {
        /// `error.code`.
        code: i64,
        /// HTTP status instead of the usual one of the code.
        #[serde(default)]
        status: Option<u16>,
        /// `error.error_subcode`.
        #[serde(default)]
        subcode: Option<i64>,
        /// `error.is_transient`.
        #[serde(default)]
        is_transient: Option<bool>,
        /// `Retry-After`, word for word: seconds or an HTTP date.
        #[serde(default)]
        retry_after: Option<String>,
    },
    /// A bare HTTP answer, nothing accepted: 429 without a body, 503 …
    Http {
        /// HTTP status.
        status: u16,
        /// The body, word for word.
        #[serde(default)]
        body: String,
        /// `Retry-After`, word for word.
        #[serde(default)]
        retry_after: Option<String>,
    },
    /// A gateway's HTML page under this status. Under 502 and 504 nobody can tell from it whether the message was taken.
    Html {
        /// HTTP status: 503 where nothing was reached, 502 and 504 where something may have been.
        status: u16,
        /// Whether the message was taken all the same.
        #[serde(default)]
        accepted: bool,
    },
    /// 200 with something that is not JSON.
    Garbage {
        /// Whether the message was taken all the same.
        accepted: bool,
    },
    /// 200 with no body.
    Empty {
        /// Whether the message was taken all the same.
        accepted: bool,
    },
    /// 200 with JSON that names no message.
    NoId {
        /// Whether the message was taken all the same.
        accepted: bool,
    },
    /// Accepted at once, answered this much later.
    Slow {
        /// Milliseconds.
        ms: u64,
    },
    /// Never answered, never accepted.
    HangBefore,
    /// Accepted, never answered.
    HangAfter,
    /// Never answered, and accepted this much later, whether the caller is still there or not.
    AcceptLate {
        /// Milliseconds.
        ms: u64,
    },
    /// The connection ends with the request read and nothing accepted.
    CutBefore {
        /// By a reset instead of an orderly end.
        #[serde(default)]
        reset: bool,
    },
    /// Accepted, then the connection ends without a byte of the answer.
    CutAfter {
        /// By a reset instead of an orderly end.
        #[serde(default)]
        reset: bool,
    },
    /// The head and half the body of a good answer, then the connection ends.
    HalfAnswer {
        /// Whether the message was taken all the same.
        accepted: bool,
    },
    /// Accepted with `message_status: held_for_quality_assessment`.
    Held,
    /// Accepted with `message_status: paused`: it will never be delivered.
    Paused,
    /// Accepted with an id, then dropped: no status ever follows.
    Dropped,
}

impl Fault {
    /// An error object by its code.
    pub fn error(code: i64) -> Self {
        Fault::Error { code, status: None, subcode: None, is_transient: None, retry_after: None }
    }

    /// An HTTP answer by its status, without a body.
    pub fn http(status: u16) -> Self {
        Fault::Http { status, body: String::new(), retry_after: None }
    }

    /// 429 with `Retry-After`.
    pub fn throttled(retry_after: impl Into<String>) -> Self {
        Fault::Http { status: 429, body: String::new(), retry_after: Some(retry_after.into()) }
    }

    /// A gateway's page, nothing accepted.
    pub fn gateway(status: u16) -> Self {
        Fault::Html { status, accepted: false }
    }

    /// The name under which the log and the statistics count it.
    pub fn name(&self) -> String {
        match self {
            Fault::Accept => "accept".into(),
            Fault::Error { code, .. } => format!("error_{code}"),
            Fault::Http { status, .. } => format!("http_{status}"),
            Fault::Html { status, .. } => format!("html_{status}"),
            Fault::Garbage { .. } => "garbage".into(),
            Fault::Empty { .. } => "empty".into(),
            Fault::NoId { .. } => "no_id".into(),
            Fault::Slow { .. } => "slow".into(),
            Fault::HangBefore => "hang_before".into(),
            Fault::HangAfter => "hang_after".into(),
            Fault::AcceptLate { .. } => "accept_late".into(),
            Fault::CutBefore { .. } => "cut_before".into(),
            Fault::CutAfter { .. } => "cut_after".into(),
            Fault::HalfAnswer { .. } => "half_answer".into(),
            Fault::Held => "held".into(),
            Fault::Paused => "paused".into(),
            Fault::Dropped => "dropped".into(),
        }
    }

    /// Whether the caller cannot know from the answer if the message was taken.
    pub fn is_ambiguous(&self) -> bool {
        matches!(
            self,
            Fault::Garbage { .. }
                | Fault::Empty { .. }
                | Fault::NoId { .. }
                | Fault::HangBefore
                | Fault::HangAfter
                | Fault::AcceptLate { .. }
                | Fault::CutBefore { .. }
                | Fault::CutAfter { .. }
                | Fault::HalfAnswer { .. }
                | Fault::Html { status: 502 | 504, .. }
                | Fault::Html { accepted: true, .. }
        )
    }

    /// Whether a status never follows although a message id was given out.
    pub(crate) fn drops_message(&self) -> bool {
        matches!(self, Fault::Paused | Fault::Held | Fault::Dropped)
    }
}

/// HTTP status and title with which Meta sends an error code (protocols of the Graph API, as observed).
pub fn code_words(code: i64) -> (u16, &'static str) {
    match code {
        0 => (401, "AuthException"),
        1 => (500, "An unknown error occurred"),
        2 => (503, "Service temporarily unavailable"),
        3 => (500, "Capability or permissions issue"),
        4 => (400, "Application request limit reached"),
        10 => (403, "Permission denied"),
        33 => (400, "Unsupported post request. Object with this ID does not exist"),
        100 => (400, "Invalid parameter"),
        190 => (401, "Error validating access token: Session has expired"),
        200..=299 => (403, "Permission missing"),
        368 => (403, "Temporarily blocked for policies violations"),
        613 => (429, "Calls to this api have exceeded the rate limit"),
        80007 => (429, "Rate limit issues"),
        130_429 => (429, "Rate limit hit"),
        130_472 => (400, "User's number is part of an experiment"),
        130_497 => (403, "Business account is restricted from messaging users in this country"),
        131_000 => (500, "Something went wrong"),
        131_005 => (403, "Access denied"),
        131_008 => (400, "Required parameter is missing"),
        131_009 => (400, "Parameter value is not valid"),
        131_016 => (503, "Service unavailable"),
        131_021 => (400, "Recipient cannot be sender"),
        131_026 => (400, "Message undeliverable"),
        131_030 => (400, "Recipient phone number not in allowed list"),
        131_031 => (403, "Account has been locked"),
        131_042 => (400, "Business eligibility payment issue"),
        131_045 => (500, "Incorrect certificate"),
        131_047 => (400, "Re-engagement message"),
        131_048 => (400, "Spam rate limit hit"),
        131_049 => (400, "This message was not delivered to maintain healthy ecosystem engagement"),
        131_050 => (400, "User has stopped marketing messages"),
        131_051 => (400, "Unsupported message type"),
        131_052 => (400, "Media download error"),
        131_053 => (400, "Media upload error"),
        131_056 => (400, "Pair rate limit hit"),
        131_057 => (503, "Account in maintenance mode"),
        132_000 => (400, "Template param count mismatch"),
        132_001 => (404, "Template does not exist"),
        132_015 => (400, "Template is paused"),
        132_016 => (400, "Template is disabled"),
        133_004 => (503, "Server temporarily unavailable"),
        133_010 => (400, "Phone number not registered"),
        133_016 => (400, "Account register deregister rate limit exceeded"),
        134_101 => (400, "Template is syncing"),
        135_000 => (400, "Generic user error"),
        _ => (400, "Error"),
    }
}

/// A fault and how likely it is, between 0 and 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chance {
    /// Share of the calls it befalls.
    pub chance: f64,
    /// What befalls them.
    pub fault: Fault,
}

/// Faults dealt out at random; what their chances leave of 1 is accepted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FaultMix(pub Vec<Chance>);

impl FaultMix {
    /// The same share of all calls for each of the faults, `share` together.
    pub fn even(share: f64, faults: Vec<Fault>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a handful of faults")]
        let chance = share / faults.len().max(1) as f64;
        Self(faults.into_iter().map(|fault| Chance { chance, fault }).collect())
    }

    /// The mixes with a name: `clear` (none), `flaky`, `ambiguous`, `throttle`, `down`, `blackhole`, `late`,
    /// `permanent`, and `chaos`, which has some of each except a dead provider.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "clear" => Self::default(),
            "flaky" => Self::even(
                0.35,
                vec![
                    Fault::http(500),
                    Fault::http(503),
                    Fault::gateway(503),
                    Fault::http(429),
                    Fault::error(131_000),
                    Fault::error(2),
                    Fault::Slow { ms: 700 },
                ],
            ),
            "ambiguous" => Self::even(0.3, Self::ambiguities()),
            "throttle" => Self::even(
                0.3,
                vec![
                    Fault::http(429),
                    Fault::throttled("1"),
                    Fault::error(130_429),
                    Fault::error(131_056),
                    Fault::error(80_007),
                    Fault::error(4),
                ],
            ),
            "down" => Self::even(1.0, vec![Fault::gateway(503)]),
            "blackhole" => Self::even(1.0, vec![Fault::HangBefore]),
            "late" => Self::even(0.3, vec![Fault::AcceptLate { ms: 12_000 }, Fault::Slow { ms: 9_000 }]),
            "permanent" => Self::even(
                0.2,
                vec![Fault::error(131_026), Fault::error(131_047), Fault::error(100), Fault::error(131_051)],
            ),
            "chaos" => {
                let mut mix = Self::even(
                    0.16,
                    vec![
                        Fault::http(500),
                        Fault::http(503),
                        Fault::gateway(503),
                        Fault::http(429),
                        Fault::throttled("1"),
                        Fault::error(130_429),
                        Fault::error(131_000),
                        Fault::Slow { ms: 600 },
                    ],
                );
                mix.0.extend(Self::even(0.15, Self::ambiguities()).0);
                mix.0.extend(Self::even(0.02, vec![Fault::error(131_026)]).0);
                mix
            }
            _ => return None,
        })
    }

    fn ambiguities() -> Vec<Fault> {
        vec![
            Fault::HangBefore,
            Fault::HangAfter,
            Fault::CutBefore { reset: false },
            Fault::CutBefore { reset: true },
            Fault::CutAfter { reset: false },
            Fault::CutAfter { reset: true },
            Fault::HalfAnswer { accepted: true },
            Fault::HalfAnswer { accepted: false },
            Fault::Garbage { accepted: true },
            Fault::Garbage { accepted: false },
            Fault::Empty { accepted: true },
            Fault::NoId { accepted: true },
            Fault::gateway(502),
            Fault::Html { status: 504, accepted: true },
        ]
    }

    /// Draws for one call.
    pub(crate) fn draw(&self, rng: &mut StdRng) -> Option<Fault> {
        if self.0.is_empty() {
            return None;
        }
        let mut left: f64 = rng.random();
        for Chance { chance, fault } in &self.0 {
            if left < *chance {
                return Some(fault.clone());
            }
            left -= chance;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_mix_deals_out_its_shares_and_the_same_seed_deals_the_same() {
        let mix = FaultMix::even(0.5, vec![Fault::HangAfter, Fault::error(4)]);
        let deal = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..4000).map(|_| mix.draw(&mut rng)).collect::<Vec<_>>()
        };
        let dealt = deal(7);
        let hangs = dealt.iter().filter(|fault| **fault == Some(Fault::HangAfter)).count();
        assert!((850..1150).contains(&hangs), "a quarter of 4000 is about 1000, not {hangs}");
        assert_eq!(dealt, deal(7));
        assert_ne!(dealt, deal(8));
    }

    #[test]
    fn every_named_mix_stays_a_probability() {
        for name in ["clear", "flaky", "ambiguous", "throttle", "down", "blackhole", "late", "permanent", "chaos"] {
            let sum: f64 = FaultMix::named(name).unwrap().0.iter().map(|c| c.chance).sum();
            assert!((0.0..=1.000_001).contains(&sum), "{name}: {sum}");
        }
        assert_eq!(FaultMix::named("sunny"), None);
    }

    #[test]
    fn a_fault_reads_from_json_as_it_is_written() {
        let fault: Fault = serde_json::from_str(r#"{"kind":"error","code":130429,"retry_after":"3"}"#).unwrap();
        assert_eq!(fault.name(), "error_130429");
        assert_eq!(serde_json::from_str::<Fault>(&serde_json::to_string(&fault).unwrap()).unwrap(), fault);
    }
}
