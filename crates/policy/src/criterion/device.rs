//! `device`: which device the person has proved to hold.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::criterion::person::NOBODY;
use crate::error::{Place, Report};
use crate::input::{Device, Input};
use crate::reason::Reason;
use crate::syntax::kind;
use crate::text::quote;
use crate::truth::{Finding, Truth};

const DEFAULT_TYPE: &str = "any";
const NAMES: [&str; 3] = ["is", "type", "approved"];

/// A device of a type, and conditions that it must all meet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DeviceCriterion {
    device_type: Arc<str>,
    credential_id: Option<Box<str>>,
    approved: Option<bool>,
}

impl DeviceCriterion {
    pub(crate) fn compile(data: &Value, place: &Place, report: &mut Report) -> Option<Self> {
        let Value::Object(members) = data else {
            report.error_with_hint(
                place,
                format!("`device` takes an object, this is {}", kind(data)),
                "write `{type: any}` for any registered device",
            );
            return None;
        };
        if members.is_empty() {
            report.error_with_hint(
                place,
                "the object is empty and says nothing",
                "write `{type: any}` for any registered device",
            );
            return None;
        }
        let wrong = report.errors.len();
        let mut criterion = Self {
            device_type: DEFAULT_TYPE.into(),
            credential_id: None,
            approved: None,
        };
        for (name, data) in members {
            let place = place.key(name);
            match (name.as_str(), data) {
                ("is", Value::String(id)) => criterion.credential_id = Some(id.as_str().into()),
                ("type", Value::String(name)) => criterion.device_type = name.as_str().into(),
                ("approved", Value::Bool(approved)) => criterion.approved = Some(*approved),
                ("approved", Value::String(text)) if text == "true" => {
                    criterion.approved = Some(true);
                }
                ("approved", Value::String(text)) if text == "false" => {
                    criterion.approved = Some(false);
                }
                ("is" | "type", other) => {
                    report.error(&place, format!("expected text, this is {}", kind(other)));
                }
                ("approved", other) => report.error_with_hint(
                    &place,
                    format!("expected a boolean, this is {}", kind(other)),
                    "write `true` or `false`",
                ),
                _ => report.push_unknown(&place, "device condition", name, NAMES),
            }
        }
        (report.errors.len() == wrong).then_some(criterion)
    }

    pub(crate) fn evaluate(&self, input: &Input<'_>) -> Finding {
        let Some(session) = &input.session else {
            return Finding::nobody(Truth::FalseByAbsence);
        };
        let mut devices = session
            .devices
            .iter()
            .filter(|device| *device.type_id == *self.device_type)
            .peekable();
        if devices.peek().is_none() {
            return Finding {
                truth: Truth::False,
                reason: Reason::DeviceUnauthenticated,
            };
        }
        Finding::new(
            devices.any(|device| self.accepts(device)),
            Reason::DeviceOk,
            Reason::DeviceUnauthorized,
        )
    }

    fn accepts(&self, device: &Device<'_>) -> bool {
        self.credential_id
            .as_deref()
            .is_none_or(|id| id == device.credential_id)
            && self
                .approved
                .is_none_or(|approved| approved == device.approved)
    }

    pub(crate) fn device_type(&self) -> Arc<str> {
        Arc::clone(&self.device_type)
    }

    pub(crate) fn met(input: &Input<'_>) -> String {
        let Some(session) = &input.session else {
            return NOBODY.to_owned();
        };
        let devices: Vec<String> = session
            .devices
            .iter()
            .map(|device| {
                let approved = if device.approved {
                    "approved"
                } else {
                    "not approved"
                };
                format!(
                    "{} of type {} ({approved})",
                    device.credential_id, device.type_id
                )
            })
            .collect();
        if devices.is_empty() {
            "no device".to_owned()
        } else {
            devices.join(", ")
        }
    }
}

impl fmt::Display for DeviceCriterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.approved {
            Some(true) => f.write_str("an approved device")?,
            Some(false) => f.write_str("a device that is not approved")?,
            None => f.write_str("a device")?,
        }
        write!(f, " of type {}", quote(&self.device_type))?;
        if let Some(id) = &self.credential_id {
            write!(f, " with id {}", quote(id))?;
        }
        Ok(())
    }
}
