//! Draws the output of a run as an SVG picture of a terminal.

use std::fmt::Write;

const LINE_HEIGHT: usize = 18;
const CHARACTER_WIDTH_TENTHS: usize = 84;
const MARGIN: usize = 16;
const BAR_HEIGHT: usize = 28;

/// Draws the command and its lines in order.
pub(crate) fn terminal(command: &str, lines: &[String]) -> String {
    let prompt = format!("$ {command}");
    let columns = lines.iter().chain([&prompt]).map(|line| line.chars().count()).max().unwrap_or(0).max(60);
    let width = columns * CHARACTER_WIDTH_TENTHS / 10 + 2 * MARGIN;
    let height = BAR_HEIGHT + (lines.len() + 1) * LINE_HEIGHT + 2 * MARGIN;

    let mut svg = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\" aria-label=\"{}\">\n<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#11161d\"/>\n",
        escaped(command)
    );
    for (at, colour) in ["#ff5f57", "#febc2e", "#28c840"].iter().enumerate() {
        let _ = writeln!(svg, "<circle cx=\"{}\" cy=\"16\" r=\"5\" fill=\"{colour}\"/>", 18 + at * 18);
    }
    svg.push_str(
        "<g font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" font-size=\"14\" fill=\"#d5dde6\">\n",
    );
    for (at, line) in std::iter::once(&prompt).chain(lines).enumerate() {
        let y = BAR_HEIGHT + MARGIN + at * LINE_HEIGHT + 4;
        let _ = writeln!(
            svg,
            "<text x=\"{MARGIN}\" y=\"{y}\" xml:space=\"preserve\" fill=\"{}\">{}</text>",
            colour(at, line),
            escaped(line)
        );
    }
    svg.push_str("</g>\n</svg>\n");
    svg
}

fn colour(at: usize, line: &str) -> &'static str {
    if at == 0 {
        "#8fb8ff"
    } else if line.contains("kill -9") || line.contains("stalls") || line.contains("LATCHED") {
        "#ff8f87"
    } else if line.contains("restart") || line.contains("took over") {
        "#f2cc6b"
    } else if line.contains(" yes") || line.starts_with("acknowledged writes lost") {
        "#7ee39a"
    } else {
        "#d5dde6"
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_drawn_once_and_markup_is_text() {
        let svg = terminal("cargo xtask demo", &["a < b & c".to_owned(), "second".to_owned()]);
        assert_eq!(svg.matches("<text ").count(), 3);
        assert!(
            svg.contains(">a &lt; b &amp; c</text>") && svg.contains(">$ cargo xtask demo</text>"),
            "{svg}"
        );
    }
}
