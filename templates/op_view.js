// Shows all that is known of one op call beside the page; its histograms share one figure.
"use strict"
const opView = {
  root: document.getElementById("op-view"),
  figure: null,
  panel: "",
  row: -1,
  opener: null,

  open(panel, row) {
    const comparison = pageData.comparisons[panel]
    const cells = comparison?.tables.similarity.rows[row]
    if (!cells) return this.close()
    if (this.root.hidden) this.opener = document.activeElement
    this.panel = panel
    this.row = row
    const columns = comparison.tables.similarity.columns
    document.getElementById("op-name").textContent = cellText(cells[1])
    document.getElementById("op-status").textContent = `op ${row + 1} of ${comparison.tables.similarity.rows.length}`
    document.getElementById("op-findings").replaceChildren(...(comparison.details.findings[row] ?? []).map(item =>
      element("li", {}, element("a", {href: `#finding-${item}`}, pageData.findings[item]))))
    const facts = comparison.details.facts[row]
    const known = columns.map((column, position) => [column.unit ? `${column.title} (${column.unit})` : column.title, cells[position]]).slice(2)
    document.getElementById("op-facts").replaceChildren(...[...known, ...pageData.labels.map((label, position) => [label, facts[position]])].flatMap(([label, cell]) =>
      [element("dt", {}, label), element("dd", {}, isMissing(cell) ? missingMark(cellText(cell)) : cellText(cell))]))
    this.root.hidden = false
    document.body.classList.add("with-op")
    this.draw(comparison.details.histograms[row])
    state.set("op", `${panel}.${row}`)
  },

  close() {
    if (this.root.hidden) return
    this.root.hidden = true
    document.body.classList.remove("with-op")
    state.set("op", "")
    this.opener?.focus?.({preventScroll: true})
  },

  async draw(histogram) {
    const place = document.getElementById("op-histogram")
    place.hidden = !histogram
    if (!histogram) return
    this.figure ??= Bokeh.embed.embed_item(JSON.parse(document.getElementById("histogram-figure").textContent), "op-histogram")
    const views = await this.figure
    const model = name => views.roots[0].model.document.get_model_by_name(name)
    const [low, high, reference, test, ...limits] = histogram
    model("reference").data = bars(low, high, reference)
    model("test").data = bars(low, high, test)
    const edges = limits.filter(limit => limit !== null)
    model("limits").data = {x: edges, y0: edges.map(() => 0), y1: edges.map(() => pageData.digits.length)}
  },
}

// One digit per bar: the bins are equal, so that their edges follow from the range.
function bars(low, high, digits) {
  const width = digits.length ? (high - low) / digits.length : 0
  const heights = [...digits].map(digit => pageData.digits.indexOf(digit))
  return {left: heights.map((_, bin) => low + bin * width), right: heights.map((_, bin) => low + (bin + 1) * width), top: heights}
}

opView.root.addEventListener("click", event => {
  const button = event.target.closest("button")
  if (!button) return
  if ("close" in button.dataset) opView.close()
  else page.openOp(opView.panel, opView.row + Number(button.dataset.step), true)
})
