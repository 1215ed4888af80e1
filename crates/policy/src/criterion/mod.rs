//! What can be asked about a request: a file for each criterion or a small group.

pub(crate) mod certificate;
pub(crate) mod claim;
pub(crate) mod date;
pub(crate) mod day_of_week;
pub(crate) mod device;
pub(crate) mod email_address;
pub(crate) mod groups;
pub(crate) mod http;
pub(crate) mod person;
pub(crate) mod record;
pub(crate) mod source_ip;
pub(crate) mod time_of_day;
pub(crate) mod zone;

use std::fmt;

use jiff::Timestamp;
use serde_json::Value;

use crate::criterion::certificate::CertificateCriterion;
use crate::criterion::claim::ClaimCriterion;
use crate::criterion::date::DateCriterion;
use crate::criterion::day_of_week::DayOfWeekCriterion;
use crate::criterion::device::DeviceCriterion;
use crate::criterion::record::RecordCriterion;
use crate::criterion::source_ip::SourceIpCriterion;
use crate::criterion::time_of_day::TimeOfDayCriterion;
use crate::error::{Place, Report};
use crate::input::Input;
use crate::matcher::list::ListMatcher;
use crate::matcher::operand;
use crate::matcher::string::{Case, Cases, StringMatcher};
use crate::needs::{Fact, Needs};
use crate::reason::Reason;
use crate::syntax::WrittenCriterion;
use crate::truth::{Finding, Truth};

/// A compiled criterion.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Criterion {
    Accept,
    Reject,
    AuthenticatedUser,
    User(StringMatcher),
    Email(StringMatcher),
    Domain(StringMatcher),
    Claim(ClaimCriterion),
    Groups(ListMatcher),
    SourceIp(SourceIpCriterion),
    HttpMethod(StringMatcher),
    HttpPath(StringMatcher),
    CorsPreflight,
    PomeriumRoutes,
    ClientCertificate(CertificateCriterion),
    InvalidClientCertificate,
    Device(DeviceCriterion),
    Date(DateCriterion),
    DayOfWeek(DayOfWeekCriterion),
    TimeOfDay(TimeOfDayCriterion),
    Record(RecordCriterion),
}

const NAMES: [&str; 20] = [
    "accept",
    "authenticated_user",
    "claim",
    "client_certificate",
    "cors_preflight",
    "date",
    "day_of_week",
    "device",
    "domain",
    "email",
    "groups",
    "http_method",
    "http_path",
    "invalid_client_certificate",
    "pomerium_routes",
    "record",
    "reject",
    "source_ip",
    "time_of_day",
    "user",
];

/// Criteria of Pomerium that Postern does not have yet.
const NOT_YET: [&str; 6] = [
    "mcp_tool",
    "ssh_ca",
    "ssh_publickey",
    "ssh_username",
    "ssh_username_matches_claim",
    "ssh_username_matches_email",
];

impl Criterion {
    /// `closes`: whether it refuses, and does not allow, when it holds. `None` when it is wrong; then
    /// `report` says why.
    pub(crate) fn compile(
        written: &WrittenCriterion<'_>,
        closes: bool,
        report: &mut Report,
    ) -> Option<Self> {
        let WrittenCriterion {
            name,
            sub_path,
            data,
            place,
        } = written;
        if *name == "claim" {
            return claim::compile(*sub_path, data, place, report).map(Self::Claim);
        }
        if !NAMES.contains(name) {
            unknown(name, place, report);
            return None;
        }
        if sub_path.is_some() {
            report.error_with_hint(
                place,
                format!("`{name}` has no parts"),
                format!("write `{name}`, or `claim/…` for a claim"),
            );
            return None;
        }
        let text = |case, report: &mut Report| StringMatcher::compile(data, case, place, report);
        Some(match *name {
            "accept" => with_ignored(Self::Accept, name, data, place, report),
            "reject" => with_ignored(Self::Reject, name, data, place, report),
            "authenticated_user" => {
                with_ignored(Self::AuthenticatedUser, name, data, place, report)
            }
            "cors_preflight" => with_ignored(Self::CorsPreflight, name, data, place, report),
            "pomerium_routes" => with_ignored(Self::PomeriumRoutes, name, data, place, report),
            "invalid_client_certificate" => {
                with_ignored(Self::InvalidClientCertificate, name, data, place, report)
            }
            "user" => Self::User(text(Case::Sensitive, report)?),
            "email" => {
                let cases = Cases::cautious(closes);
                Self::Email(StringMatcher::compile(data, cases, place, report)?)
            }
            "domain" => {
                let matcher = text(Case::AsciiInsensitive, report)?;
                for domain in matcher.equal_to() {
                    operand::check_domain(domain, place, report);
                }
                Self::Domain(matcher)
            }
            "http_method" => {
                let matcher = text(Case::Sensitive, report)?;
                http::check_method(&matcher, place, report);
                Self::HttpMethod(matcher)
            }
            "http_path" => Self::HttpPath(text(Case::Sensitive, report)?),
            "groups" => Self::Groups(ListMatcher::compile(data, place, report)?),
            "source_ip" => Self::SourceIp(SourceIpCriterion::compile(data, place, report)?),
            "client_certificate" => {
                Self::ClientCertificate(CertificateCriterion::compile(data, place, report)?)
            }
            "device" => Self::Device(DeviceCriterion::compile(data, place, report)?),
            "date" => Self::Date(DateCriterion::compile(data, place, report)?),
            "day_of_week" => Self::DayOfWeek(DayOfWeekCriterion::compile(data, place, report)?),
            "time_of_day" => Self::TimeOfDay(TimeOfDayCriterion::compile(data, place, report)?),
            "record" => Self::Record(RecordCriterion::compile(data, place, report)?),
            _ => {
                unknown(name, place, report);
                return None;
            }
        })
    }

    pub(crate) fn evaluate(&self, input: &Input<'_>) -> Finding {
        match self {
            Self::Accept => Finding::new(true, Reason::Accept, Reason::Accept),
            Self::Reject => Finding::new(false, Reason::Reject, Reason::Reject),
            Self::AuthenticatedUser => person::authenticated(input),
            Self::User(matcher) => person::user(matcher, input),
            Self::Email(matcher) => person::email(matcher, input),
            Self::Domain(matcher) => person::domain(matcher, input),
            Self::Claim(claim) => claim.evaluate(input),
            Self::Groups(matcher) => groups::evaluate(matcher, input),
            Self::SourceIp(networks) => networks.evaluate(input),
            Self::HttpMethod(matcher) => http::method(matcher, input),
            Self::HttpPath(matcher) => http::path(matcher, input),
            Self::CorsPreflight => http::cors_preflight(input),
            Self::PomeriumRoutes => http::pomerium_routes(input),
            Self::ClientCertificate(certificate) => certificate.evaluate(input),
            Self::InvalidClientCertificate => certificate::invalid(input),
            Self::Device(device) => device.evaluate(input),
            Self::Date(date) => date.evaluate(input),
            Self::DayOfWeek(days) => days.evaluate(input),
            Self::TimeOfDay(time) => time.evaluate(input),
            Self::Record(record) => record.evaluate(input),
        }
    }

    /// What it met, with its type, for explanations.
    pub(crate) fn met(&self, input: &Input<'_>) -> String {
        match self {
            Self::Accept | Self::Reject => "anything".to_owned(),
            Self::AuthenticatedUser | Self::User(_) => person::met_user(input),
            Self::Email(_) => person::met_email(input),
            Self::Domain(_) => person::met_domain(input),
            Self::Claim(claim) => claim.met(input),
            Self::Groups(_) => groups::met(input),
            Self::SourceIp(_) => source_ip::met(input),
            Self::HttpMethod(_) => crate::text::quote(input.http.method),
            Self::HttpPath(_) | Self::PomeriumRoutes => crate::text::quote(input.http.path),
            Self::CorsPreflight => http::met_preflight(input),
            Self::ClientCertificate(_) | Self::InvalidClientCertificate => certificate::met(input),
            Self::Device(_) => DeviceCriterion::met(input),
            Self::Date(_) => input.now.to_string(),
            Self::DayOfWeek(days) => days.met(input),
            Self::TimeOfDay(time) => time.met(input),
            Self::Record(record) => record.met(input),
        }
    }

    /// It asks about whoever is signed in.
    pub(crate) fn is_about_person(&self) -> bool {
        matches!(
            self,
            Self::AuthenticatedUser
                | Self::User(_)
                | Self::Email(_)
                | Self::Domain(_)
                | Self::Claim(_)
                | Self::Groups(_)
                | Self::Device(_)
        )
    }

    /// It only says what must not be, such as `email: {not: …}`.
    pub(crate) fn is_negative(&self) -> bool {
        match self {
            Self::User(matcher) | Self::Email(matcher) | Self::Domain(matcher) => {
                matcher.is_negative()
            }
            Self::Claim(claim) => claim.is_negative(),
            Self::Groups(matcher) => matcher.is_negative(),
            _ => false,
        }
    }

    pub(crate) fn add_needs(&self, needs: &mut Needs) {
        match self {
            Self::Accept
            | Self::Reject
            | Self::SourceIp(_)
            | Self::HttpMethod(_)
            | Self::HttpPath(_)
            | Self::CorsPreflight
            | Self::PomeriumRoutes => {}
            Self::AuthenticatedUser | Self::User(_) => needs.add(Fact::Session),
            Self::Email(_) | Self::Domain(_) => {
                needs.add(Fact::Session);
                needs.add(Fact::Email);
            }
            Self::Claim(_) => {
                needs.add(Fact::Session);
                needs.add(Fact::Claims);
            }
            Self::Groups(_) => {
                needs.add(Fact::Session);
                needs.add(Fact::Groups);
                needs.add(Fact::Claims);
            }
            Self::ClientCertificate(_) | Self::InvalidClientCertificate => {
                needs.add(Fact::ClientCertificate);
            }
            Self::Device(_) => {
                needs.add(Fact::Session);
                needs.add(Fact::Devices);
            }
            Self::Date(_) | Self::DayOfWeek(_) | Self::TimeOfDay(_) => needs.add(Fact::Time),
            Self::Record(record) => {
                needs.add(Fact::Session);
                needs.add_record_type(record.record_type());
            }
        }
    }

    pub(crate) fn next_time_boundary(&self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Date(date) => date.next_boundary(now),
            Self::DayOfWeek(days) => days.next_boundary(now),
            Self::TimeOfDay(time) => time.next_boundary(now),
            _ => None,
        }
    }
}

fn unknown(name: &str, place: &Place, report: &mut Report) {
    if NOT_YET.contains(&name) {
        report.error(place, format!("criterion `{name}` is not supported yet"));
        return;
    }
    let meant = match name {
        "claims" | "allowed_idp_claims" => Some("claim/NAME"),
        "group" | "allowed_groups" => Some("groups"),
        "users" | "allowed_users" => Some("user"),
        "emails" => Some("email"),
        "domains" | "allowed_domains" => Some("domain"),
        "ip" | "client_ip" | "remote_ip" => Some("source_ip"),
        "method" => Some("http_method"),
        "path" => Some("http_path"),
        "public" | "allow_public_unauthenticated_access" => Some("accept"),
        "and" | "or" | "not" | "nor" => {
            report.error_with_hint(
                place,
                format!("`{name}` can't stand inside another operator"),
                "put it beside the other operator or into a rule of its own",
            );
            return;
        }
        _ => None,
    };
    match meant {
        Some(meant) => report.error_with_hint(
            place,
            format!("unknown criterion `{name}`"),
            format!("did you mean `{meant}`?"),
        ),
        None => report.push_unknown(place, "criterion", name, NAMES),
    }
}

/// A criterion whose operand says nothing. `false` is what somebody might think says something.
fn with_ignored(
    criterion: Criterion,
    name: &str,
    data: &Value,
    place: &Place,
    report: &mut Report,
) -> Criterion {
    if matches!(data, Value::Bool(false)) {
        report.note(
            place,
            format!("the value of `{name}` is ignored, `false` means the same as `true`"),
        );
    }
    criterion
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("anybody"),
            Self::Reject => f.write_str("nobody"),
            Self::AuthenticatedUser => f.write_str("somebody who is signed in"),
            Self::User(matcher) => write!(f, "user id {matcher}"),
            Self::Email(matcher) => write!(f, "e-mail address {matcher}"),
            Self::Domain(matcher) => write!(f, "e-mail domain {matcher}"),
            Self::Claim(claim) => claim.fmt(f),
            Self::Groups(matcher) => write!(f, "groups: {matcher}"),
            Self::SourceIp(networks) => networks.fmt(f),
            Self::HttpMethod(matcher) => write!(f, "method {matcher}"),
            Self::HttpPath(matcher) => write!(f, "path {matcher}"),
            Self::CorsPreflight => f.write_str("a CORS preflight"),
            Self::PomeriumRoutes => f.write_str("a path under /.pomerium"),
            Self::ClientCertificate(certificate) => certificate.fmt(f),
            Self::InvalidClientCertificate => f.write_str("no valid client certificate"),
            Self::Device(device) => device.fmt(f),
            Self::Date(date) => date.fmt(f),
            Self::DayOfWeek(days) => days.fmt(f),
            Self::TimeOfDay(time) => time.fmt(f),
            Self::Record(record) => record.fmt(f),
        }
    }
}

/// Absence of a positive or negative matcher's subject.
pub(crate) const fn by_absence(negative: bool) -> Truth {
    if negative {
        Truth::TrueByAbsence
    } else {
        Truth::FalseByAbsence
    }
}
