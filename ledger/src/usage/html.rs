//! The monthly report: one HTML page without scripts or anything from elsewhere.

use std::fmt::Write as _;

use super::{Accounts, By, Line, Month, Usage, dollars};

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1f26; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; width: 100%; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #d8dde3; }
th:first-child, td:first-child { text-align: left; }
tr.total td { font-weight: 600; }
svg { width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: #56606b; }
.own { fill: #2a6fb0; } .read { fill: #7fb2dd; } .written { fill: #2a6fb0; } .axis { stroke: #a9b2bc; }
.e0 { stroke: #c4502b; } .e1 { stroke: #2f8f5b; } .e2 { stroke: #8a55b3; } .e3 { stroke: #b58a1b; }
";

/// Curves of one plot; more are not told apart.
const CURVES: usize = 4;
/// A plot's width, height, and room at its left and foot.
const PLOT: (f64, f64, f64, f64) = (900.0, 220.0, 70.0, 24.0);

pub(super) fn page(accounts: &Accounts) -> String {
    let mut page = String::new();
    let title = "Penstock: use and cost";
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style></head>\n\
         <body><h1>{title}</h1>\n"
    );
    if accounts.months.is_empty() {
        page.push_str("<p>Nothing was settled in this time.</p>\n");
    }
    for ((year, number), month) in accounts.months.iter().rev() {
        let _ = write!(page, "<h2>{year:04}-{number:02}</h2>\n{}", section(accounts, month));
    }
    page.push_str(
        "<p>Costs of the cluster's own models are their share of its machines' time; days are UTC.</p></body></html>\n",
    );
    page
}

fn section(accounts: &Accounts, month: &Month) -> String {
    let of = |by| accounts.sum(by, std::iter::once(month));
    let days = of(By::Day);
    let mut section = summary(&days);
    section.push_str("<h3>Cost by day</h3>\n");
    section.push_str(&costs(&days));
    section.push_str("<h3>Tokens by day</h3>\n");
    section.push_str(&tokens(&days));
    for by in [By::Tenant, By::Model, By::Target, By::Task] {
        let _ = write!(section, "<h3>By {}</h3>\n{}", by.as_str(), table(&of(by)));
    }
    section
}

fn summary(usage: &Usage) -> String {
    let total = &usage.total;
    let mut text = format!(
        "<p>{} requests read {} and wrote {} tokens for {}, of which {} for idle machines.",
        count(total.requests),
        count(total.tokens.prompt),
        count(total.tokens.completion),
        dollars(signed(total.cost_nanos)),
        dollars(signed(usage.idle.cost_nanos)),
    );
    for ((elsewhere, cost), saved) in usage.elsewhere.iter().zip(&total.elsewhere_nanos).zip(total.saved_nanos()) {
        let (name, cost) = (escape(&elsewhere.name), dollars(signed(*cost)));
        let _ = match saved {
            0.. => write!(text, " On {name} the same tokens cost {cost}: {} saved.", dollars(saved)),
            _ => write!(text, " On {name} the same tokens cost {cost}: {} more was spent.", dollars(-saved)),
        };
    }
    text + "</p>\n"
}

fn table(usage: &Usage) -> String {
    let mut table =
        "<table><tr><th></th><th>requests</th><th>failed</th><th>prompt</th><th>cached</th><th>completion</th>\
                     <th>seconds</th><th>cost</th>"
            .to_owned();
    for elsewhere in &usage.elsewhere {
        let name = escape(&elsewhere.name);
        let _ = write!(table, "<th>on {name}</th><th>saved</th>");
    }
    table.push_str("</tr>\n");
    for line in &usage.lines {
        row(&mut table, "", line);
    }
    if usage.idle.cost_nanos > 0 || usage.idle.compute_us > 0 {
        row(&mut table, "", &usage.idle);
    }
    row(&mut table, " class=\"total\"", &usage.total);
    table + "</table>\n"
}

fn row(table: &mut String, class: &str, line: &Line) {
    let _ = write!(
        table,
        "<tr{class}><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.1}</td><td>{}</td>",
        escape(&line.name),
        count(line.requests),
        count(line.failed),
        count(line.tokens.prompt),
        count(line.tokens.cached),
        count(line.tokens.completion),
        line.compute_us as f64 / 1e6,
        dollars(signed(line.cost_nanos)),
    );
    for (cost, saved) in line.elsewhere_nanos.iter().zip(line.saved_nanos()) {
        let _ = write!(table, "<td>{}</td><td>{}</td>", dollars(signed(*cost)), dollars(saved));
    }
    table.push_str("</tr>\n");
}

/// Bars of what was spent, curves of what the same tokens cost elsewhere.
fn costs(days: &Usage) -> String {
    let curves = days.elsewhere.len().min(CURVES);
    let all =
        |line: &Line| line.elsewhere_nanos.iter().take(curves).copied().chain([line.cost_nanos]).max().unwrap_or(0);
    let top = days.lines.iter().map(all).max().unwrap_or(0) as f64;
    let mut plot = frame(days, &dollars(top as i64));
    for (at, line) in days.lines.iter().enumerate() {
        plot.push_str(&bar(days.lines.len(), at, (0.0, line.cost_nanos as f64), top, "own"));
    }
    for (curve, elsewhere) in days.elsewhere.iter().take(curves).enumerate() {
        let points = days.lines.iter().enumerate().map(|(at, line)| {
            let (x, width) = place(days.lines.len(), at);
            let y = height(line.elsewhere_nanos.get(curve).copied().unwrap_or(0) as f64, top);
            format!("{:.1},{:.1}", x + width / 2.0, y)
        });
        let points = points.collect::<Vec<_>>().join(" ");
        let (name, x) = (escape(&elsewhere.name), PLOT.2 + 90.0 + 190.0 * curve as f64);
        let _ = write!(
            plot,
            "<polyline class=\"e{curve}\" fill=\"none\" stroke-width=\"2\" points=\"{points}\"/>\
             <line class=\"e{curve}\" stroke-width=\"2\" x1=\"{x}\" y1=\"8\" x2=\"{}\" y2=\"8\"/><text x=\"{}\" y=\"12\">{name}</text>",
            x + 16.0,
            x + 21.0,
        );
    }
    plot + &legend("own", 0, "spent here") + "</svg>\n"
}

fn tokens(days: &Usage) -> String {
    let both = |line: &Line| line.tokens.prompt.saturating_add(line.tokens.completion);
    let top = days.lines.iter().map(both).max().unwrap_or(0);
    let mut plot = frame(days, &count(top));
    for (at, line) in days.lines.iter().enumerate() {
        let (read, top) = (line.tokens.prompt as f64, top as f64);
        plot.push_str(&bar(days.lines.len(), at, (0.0, read), top, "read"));
        plot.push_str(&bar(days.lines.len(), at, (read, both(line) as f64), top, "written"));
    }
    plot + &legend("read", 0, "prompt") + &legend("written", 1, "completion") + "</svg>\n"
}

/// The axes, and the days below them.
fn frame(days: &Usage, top: &str) -> String {
    let (width, height, left, foot) = PLOT;
    let floor = height - foot;
    let mut plot = format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\"><line class=\"axis\" x1=\"{left}\" y1=\"{floor}\" x2=\"{width}\" \
         y2=\"{floor}\"/><text x=\"{}\" y=\"28\" text-anchor=\"end\">{top}</text><text x=\"{}\" y=\"{floor}\" text-anchor=\"end\">0</text>",
        left - 6.0,
        left - 6.0
    );
    for (at, line) in days.lines.iter().enumerate() {
        let (x, wide) = place(days.lines.len(), at);
        // The day of the month is enough: the month stands above.
        let day = escape(line.name.rsplit('-').next().unwrap_or_default());
        let _ = write!(
            plot,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{day}</text>",
            x + wide / 2.0,
            height - 8.0
        );
    }
    plot
}

fn legend(class: &str, at: u32, word: &str) -> String {
    let x = PLOT.2 + 90.0 * f64::from(at);
    format!(
        "<rect class=\"{class}\" x=\"{x}\" y=\"3\" width=\"10\" height=\"10\"/><text x=\"{}\" y=\"12\">{word}</text>",
        x + 15.0
    )
}

fn bar(days: usize, at: usize, (from, to): (f64, f64), top: f64, class: &str) -> String {
    let (x, width) = place(days, at);
    let (low, high) = (height(from, top), height(to, top));
    format!("<rect class=\"{class}\" x=\"{x:.1}\" y=\"{high:.1}\" width=\"{width:.1}\" height=\"{:.1}\"/>", low - high)
}

/// Where a day's bar begins, and how wide it is.
fn place(days: usize, at: usize) -> (f64, f64) {
    let step = (PLOT.0 - PLOT.2) / days.max(1) as f64;
    let width = (step * 0.7).min(60.0);
    (PLOT.2 + step * at as f64 + (step - width) / 2.0, width)
}

/// The y of a value; the plot's top is left to the legend.
fn height(value: f64, top: f64) -> f64 {
    let floor = PLOT.1 - PLOT.3;
    if top > 0.0 { floor - value / top * (floor - 24.0) } else { floor }
}

fn signed(nanos: u64) -> i64 {
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

/// 1,234,567.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}
