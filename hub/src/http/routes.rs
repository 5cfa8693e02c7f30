//! The list of all routes, kept while the router is built, so that a test can hold it against the document.

use axum::Router;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};

use super::Api;

/// A router under construction and what it answers to.
pub(super) struct Routes {
    router: Router<Api>,
    table: Vec<(Method, &'static str)>,
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident, $method:ident;)*) => {$(
        $(#[$doc])*
        pub(super) fn $name<H, T>(self, path: &'static str, handler: H) -> Self
        where
            H: axum::handler::Handler<T, Api>,
            T: 'static,
        {
            self.add(Method::$method, path, on(MethodFilter::$method, handler))
        }
    )*};
}

impl Routes {
    pub(super) fn new() -> Self {
        Self { router: Router::new(), table: Vec::new() }
    }

    methods! {
        /// Answers GET.
        get, GET;
        /// Answers POST.
        post, POST;
        /// Answers PUT.
        put, PUT;
        /// Answers DELETE.
        delete, DELETE;
    }

    fn add(mut self, method: Method, path: &'static str, handler: MethodRouter<Api>) -> Self {
        self.table.push((method, path));
        self.router = self.router.route(path, handler);
        self
    }

    /// The router.
    pub(super) fn into_router(self) -> Router<Api> {
        self.router
    }

    /// Every method and path.
    #[cfg(test)]
    pub(super) fn table(&self) -> &[(Method, &'static str)] {
        &self.table
    }
}
