//! The span of each call, and the log line of a call that fails.

use std::sync::Arc;

use tracing::{Instrument, Span};

use crate::engine::{Engine, Key};
use crate::error::{Error, Result};
use crate::front::cache::Cache;
use crate::front::request::BoxFuture;

/// The span of a call. It is empty if nobody reads it.
pub(super) struct CallSpan {
    span: Span,
    operation: &'static str,
    /// `None` for an empty span.
    engine: Option<Arc<Engine>>,
}

impl Cache {
    pub(super) fn span(&self, operation: &'static str, key: &Key) -> CallSpan {
        let key = self.engine.logged(&key.full);
        let span = tracing::debug_span!("bentocache", operation, store = %self.engine.name, key);
        CallSpan::new(span, operation, &self.engine)
    }

    pub(super) fn span_many(&self, operation: &'static str) -> CallSpan {
        let span = tracing::debug_span!("bentocache", operation, store = %self.engine.name);
        CallSpan::new(span, operation, &self.engine)
    }
}

impl CallSpan {
    fn new(span: Span, operation: &'static str, engine: &Arc<Engine>) -> Self {
        let engine = (!span.is_disabled()).then(|| engine.clone());
        Self { span, operation, engine }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.engine.is_none()
    }

    /// Runs the call in the span, and logs its error.
    pub(super) fn run<T>(
        self,
        call: impl Future<Output = Result<T>>,
    ) -> impl Future<Output = Result<T>> {
        let Self { span, operation, engine } = self;
        let call = async move {
            let result = call.await;
            if let (Err(error), Some(engine)) = (&result, &engine) {
                log_failure(engine, operation, error);
            }
            result
        };
        call.instrument(span)
    }
}

/// Boxes the future of a call, and runs it in the span unless that is empty.
pub(super) fn in_span<T: 'static>(
    span: CallSpan,
    call: impl Future<Output = Result<T>> + Send + 'static,
) -> BoxFuture<Result<T>> {
    if span.is_empty() { Box::pin(call) } else { Box::pin(span.run(call)) }
}

fn log_failure(engine: &Engine, operation: &'static str, error: &Error) {
    match error {
        // An answer of the factory, which has a line of its own.
        Error::Skipped { .. } | Error::Gone { .. } => {}
        error => {
            let error = engine.logged_error(error);
            tracing::debug!(store = %engine.name, operation, error, "call failed");
        }
    }
}
