//! HTML that is escaped by construction: names of elements and attributes are literals, all else is text.

use std::fmt::{Display, Write as _};

/// A piece of HTML.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Html(String);

impl Html {
    /// Text; what would be markup in it is escaped.
    pub(super) fn text(text: impl Display) -> Self {
        let mut html = Self::default();
        escape_into(&mut html.0, &text.to_string());
        html
    }

    /// Markup as it is, which only the program itself can bring along.
    pub(super) fn markup(markup: &'static str) -> Self {
        Self(markup.to_owned())
    }

    /// Adds `next` at the end.
    pub(super) fn push(&mut self, next: impl Into<Self>) {
        self.0.push_str(&next.into().0);
    }

    /// The markup.
    pub(super) fn into_string(self) -> String {
        self.0
    }
}

impl From<&str> for Html {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Html {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

impl From<Element> for Html {
    fn from(element: Element) -> Self {
        let Element { name, attributes, content } = element;
        if matches!(name, "meta" | "br") {
            return Self(format!("<{name}{attributes}>"));
        }
        Self(format!("<{name}{attributes}>{}</{name}>", content.0))
    }
}

impl<T: Into<Self>> From<Option<T>> for Html {
    fn from(some: Option<T>) -> Self {
        some.map_or_else(Self::default, Into::into)
    }
}

impl<T: Into<Self>> FromIterator<T> for Html {
    fn from_iter<I: IntoIterator<Item = T>>(pieces: I) -> Self {
        let mut all = Self::default();
        pieces.into_iter().for_each(|piece| all.push(piece));
        all
    }
}

/// An element in the making.
#[derive(Debug, Clone)]
pub(super) struct Element {
    name: &'static str,
    attributes: String,
    content: Html,
}

/// An element called `name`, still empty.
pub(super) fn el(name: &'static str) -> Element {
    Element { name, attributes: String::new(), content: Html::default() }
}

impl Element {
    /// With an attribute.
    pub(super) fn at(mut self, attribute: &'static str, value: impl Display) -> Self {
        let _ = write!(self.attributes, " {attribute}=\"");
        escape_into(&mut self.attributes, &value.to_string());
        self.attributes.push('"');
        self
    }

    /// Of a class.
    pub(super) fn class(self, class: impl Display) -> Self {
        self.at("class", class)
    }

    /// With more content: elements, or texts, which are escaped.
    pub(super) fn add(mut self, next: impl Into<Html>) -> Self {
        self.content.push(next);
        self
    }

    /// With several pieces of content.
    pub(super) fn all<T: Into<Html>>(self, pieces: impl IntoIterator<Item = T>) -> Self {
        self.add(pieces.into_iter().collect::<Html>())
    }
}

fn escape_into(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Not allowed in HTML, and what a terminal would do with them is no better.
            control if control.is_control() && !matches!(control, '\n' | '\t') => out.push('\u{fffd}'),
            // Text in which reading order changes could show other than what is there.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            plain => out.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_attributes_cannot_become_markup() {
        let bad = "<script>alert('x')</script> & \" onload=\"x\u{0}\u{202e}";
        let html: Html = el("p").at("title", bad).add(bad).into();
        let escaped = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot; onload=&quot;x\u{fffd}\u{fffd}";
        assert_eq!(html.into_string(), format!("<p title=\"{escaped}\">{escaped}</p>"));
    }
}
