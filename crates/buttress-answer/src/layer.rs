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
    /// For HTTP: answers with a status and problem+json (RFC 9457), and says in every response how the caller stands with
    /// the limiters below.
    #[must_use]
    pub fn http() -> Self {
        Self::new(Protocol::Http)
    }

    /// For gRPC, around services of `tonic`: answers with a status of gRPC.
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

    /// Answers as this says to an error that is no refusal and no timeout, unless it says `None`; by default with status
    /// 500, or `UNKNOWN` in gRPC, and nothing of the error.
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
    /// In gRPC, so that an error that is a status of `tonic` is answered with it:
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
