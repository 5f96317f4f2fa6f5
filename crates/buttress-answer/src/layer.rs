//! The layer: what the user sets.

use std::sync::Arc;

use buttress_core::BoxError;
use bytes::Bytes;
use http::Response;
use tower_layer::Layer;

use crate::{
    Answer,
    answers::{Answers, Protocol},
};

/// Answers for the layers below it. See the [crate docs](crate) for an example.
#[derive(Clone, Debug)]
pub struct AnswerLayer {
    answers: Answers,
}

impl AnswerLayer {
    /// For HTTP: answers with a status and problem+json (RFC 9457), and says in every response what the limiters below have
    /// left for the caller.
    #[must_use]
    pub fn http() -> Self {
        Self::new(Protocol::Http)
    }

    /// For gRPC, around services of `tonic`: answers with a gRPC status, and says nothing of limiters.
    #[must_use]
    pub fn grpc() -> Self {
        Self::new(Protocol::Grpc)
    }

    fn new(protocol: Protocol) -> Self {
        Self {
            answers: Answers {
                protocol,
                on_error: None,
            },
        }
    }

    /// Answers an error that is neither a refusal nor a timeout with the response that this returns. Without it, or if it
    /// returns `None`, the answer is 500, or `UNKNOWN` in gRPC, and shows nothing of the error.
    ///
    /// ```
    /// use std::io;
    ///
    /// use buttress_answer::AnswerLayer;
    /// use http::{Response, StatusCode};
    ///
    /// let layer = AnswerLayer::http().on_error(|error| {
    ///     eprintln!("{error}");
    ///     let upstream = error.downcast_ref::<io::Error>()?;
    ///     let answer = format!("the service behind this one is gone: {}", upstream.kind());
    ///     let mut answer = Response::new(answer.into());
    ///     *answer.status_mut() = StatusCode::BAD_GATEWAY;
    ///     Some(answer)
    /// });
    /// # tower::Layer::layer(&layer, ());
    /// ```
    ///
    /// In gRPC, to answer an error that is a status of `tonic` with that status:
    ///
    /// ```
    /// use buttress_answer::AnswerLayer;
    /// use tonic::Status;
    ///
    /// let layer = AnswerLayer::grpc().on_error(|error| {
    ///     let status = Status::try_from_error(error).ok()?;
    ///     Some(status.into_http())
    /// });
    /// # tower::Layer::layer(&layer, ());
    /// ```
    #[must_use]
    pub fn on_error(
        mut self,
        answer: impl Fn(BoxError) -> Option<Response<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        self.answers.on_error = Some(Arc::new(answer));
        self
    }
}

impl<S> Layer<S> for AnswerLayer {
    type Service = Answer<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Answer::new(inner, self.answers.clone())
    }
}
