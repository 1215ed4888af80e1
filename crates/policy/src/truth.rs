//! The value of a criterion.

use crate::policy::Action;
use crate::reason::Reason;

/// The value of a criterion: whether it holds, and whether only because a fact is missing.
///
/// Without a session, `email: {not: eve@corp.test}` is [`TrueByAbsence`](Self::TrueByAbsence) and
/// `email: {is: ann@corp.test}` is [`FalseByAbsence`](Self::FalseByAbsence).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Truth {
    True,
    False,
    TrueByAbsence,
    FalseByAbsence,
}

impl Truth {
    /// The opposite. Absence stays absence.
    #[must_use]
    pub const fn negate(self) -> Self {
        match self {
            Self::True => Self::False,
            Self::False => Self::True,
            Self::TrueByAbsence => Self::FalseByAbsence,
            Self::FalseByAbsence => Self::TrueByAbsence,
        }
    }

    /// Does it count as true in a rule of this kind? In `allow` only what is true outright, in
    /// `deny` also what is true by absence: in doubt, no access.
    pub const fn counts_in(self, action: Action) -> bool {
        match (self, action) {
            (Self::True, _) | (Self::TrueByAbsence, Action::Deny) => true,
            (Self::TrueByAbsence, Action::Allow) | (Self::False | Self::FalseByAbsence, _) => false,
        }
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// What a criterion says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) truth: Truth,
    pub(crate) reason: Reason,
}

impl Finding {
    /// `ok` when it is true outright, else `otherwise`.
    pub(crate) fn new(truth: impl Into<Truth>, ok: Reason, otherwise: Reason) -> Self {
        let truth = truth.into();
        let reason = if truth == Truth::True { ok } else { otherwise };
        Self { truth, reason }
    }

    /// Nobody is signed in.
    pub(crate) const fn nobody(truth: Truth) -> Self {
        Self {
            truth,
            reason: Reason::UserUnauthenticated,
        }
    }
}
