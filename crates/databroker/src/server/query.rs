//! `Query`: a page of records that match a filter and a text.

use postern_common::rpc::stubs::databroker::{QueryRequest, QueryResponse, Record};
use prost::Message as _;
use tonic::Status;

use super::{deadline, kind};
use crate::payload::Payload;
use crate::query::{Closeness, Filter, FilterError};
use crate::storage::{PageStart, Storage};

/// How many records may be opened to answer one query.
const MAX_SCAN: usize = 10_000;
/// How large an answer may be: what clients accept by default, less some room for the frame.
const MAX_ANSWER: usize = (4 << 20) - 1_024;

pub(super) async fn answer(
    storage: &dyn Storage,
    request: QueryRequest,
) -> Result<QueryResponse, Status> {
    let bad = |name| Status::invalid_argument(format!("{name} must not be negative"));
    let offset = u64::try_from(request.offset).map_err(|_| bad("offset"))?;
    let limit = usize::try_from(request.limit).map_err(|_| bad("limit"))?;
    let filter = request
        .filter
        .as_ref()
        .map(Filter::read)
        .transpose()
        .map_err(|error| filter_status(&error))?;
    let kind = kind(request.r#type)?;
    // Read first: who follows from here on misses nothing.
    let head = deadline(storage.head()).await?;

    let text = request.query.to_lowercase();
    let (total, records) = if filter.is_none() && text.is_empty() {
        let total = deadline(storage.count(kind.clone())).await?;
        // An answer that is too large is refused below; it need not be read to its end.
        let limit = limit.min(MAX_SCAN);
        let records = if limit == 0 {
            Vec::new()
        } else {
            deadline(storage.page(kind, PageStart::Offset(offset), limit)).await?
        };
        (total, records)
    } else {
        let filter = filter.unwrap_or(Filter::And(Vec::new()));
        let candidates = candidates(storage, kind, &filter).await?;
        let mut matching: Vec<_> = candidates
            .into_iter()
            .filter_map(|record| Some((matches(&filter, &text, &record)?, record)))
            .collect();
        if filter.asks_for_network() {
            // Who takes the first one wants the one that says the most about this address. What is
            // equally close stays in the order of the ids.
            matching.sort_by(|(one, a), (other, b)| a.r#type.cmp(&b.r#type).then(other.cmp(one)));
        }
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        (
            matching.len() as u64,
            matching
                .into_iter()
                .map(|(_, record)| record)
                .skip(skip)
                .take(limit)
                .collect(),
        )
    };

    let answer = QueryResponse {
        records,
        total_count: i64::try_from(total).unwrap_or(i64::MAX),
        server_version: head.server_version,
        record_version: head.latest,
    };
    if answer.encoded_len() > MAX_ANSWER {
        return Err(Status::resource_exhausted(
            "the records asked for are more than 4 MiB; ask with a smaller limit",
        ));
    }
    Ok(answer)
}

/// Records among which all that match are.
async fn candidates(
    storage: &dyn Storage,
    kind: Option<String>,
    filter: &Filter,
) -> Result<Vec<Record>, Status> {
    let limit = MAX_SCAN + 1;
    let options = deadline(storage.options()).await?;
    let indexable = options
        .into_iter()
        .find_map(|(it, options)| (Some(&it) == kind.as_ref()).then_some(options.indexable_fields))
        .unwrap_or_default();
    let records = match (kind, filter.lookups(&indexable)) {
        (Some(kind), Some(lookups)) => deadline(storage.find(kind, lookups, limit)).await?,
        (kind, _) => deadline(storage.page(kind, PageStart::Offset(0), limit)).await?,
    };
    if records.len() > MAX_SCAN {
        return Err(Status::resource_exhausted(format!(
            "more than {MAX_SCAN} records would have to be opened; filter by id or by an indexed field"
        )));
    }
    Ok(records)
}

/// How close a record comes, if it matches. Payloads of unknown types have no text and no fields.
fn matches(filter: &Filter, text: &str, record: &Record) -> Option<Closeness> {
    let payload = record.data.as_ref().and_then(Payload::read);
    let matches = filter.matches(record, payload.as_ref())
        && (text.is_empty()
            || payload
                .as_ref()
                .is_some_and(|payload| payload.contains_text(text)));
    matches.then(|| filter.closeness(record, payload.as_ref()))
}

fn filter_status(error: &FilterError) -> Status {
    match error {
        FilterError::Unsupported(_) => Status::unimplemented(error.to_string()),
        FilterError::NotAList(_) | FilterError::TooBig | FilterError::Nul(_) => {
            Status::invalid_argument(error.to_string())
        }
    }
}
