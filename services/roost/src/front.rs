//! One listener for everything: webhooks go to ingress, health is answered here, the rest is for people.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Either, Full};
use inbox::Inbox;
use ingress::Ingress;
use runtime::health::{Detail, Health};
use runtime::http_server::{Handler, RequestBody};

/// The routes of the main listener.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    pub(crate) health: Health,
    pub(crate) ingress: Option<Ingress>,
    pub(crate) inbox: Option<Inbox>,
}

impl Handler for Front {
    type Body = Either<Full<Bytes>, inbox::Body>;

    async fn call(&self, request: Request<RequestBody>) -> Response<Self::Body> {
        let path = request.uri().path();
        if ingress::serves(path) {
            return match &self.ingress {
                Some(ingress) => ingress.handle(request).await.map(Either::Left),
                None => not_here(),
            };
        }
        if let Some(answer) = self.health.respond(request.method(), path, Detail::Bare) {
            return answer.map(Either::Left);
        }
        match &self.inbox {
            Some(inbox) => inbox.handle(request).await.map(Either::Right),
            None => not_here(),
        }
    }
}

fn not_here<R>() -> Response<Either<Full<Bytes>, R>> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from_static(b"not served by this process\n"))));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}
