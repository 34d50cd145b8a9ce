// Sorts, filters and folds a table whose cells were all written in Python.
const FIRST_ROWS = 30
const MORE_ROWS = 200
const FOLDS = {
  inherited: count => `${count} with inherited error only`,
  healthy: count => `${count} healthy row${count > 1 ? "s" : ""}`,
  not_compared: count => `${count} row${count > 1 ? "s" : ""} not compared`,
}
const DIRECTIONS = {up: ["↑", "higher is better"], down: ["↓", "lower is better"]}

class Table {
  constructor(root) {
    this.root = root
    this.panel = root.dataset.panel
    this.key = `${this.panel}.${root.dataset.table}`
    this.spec = pageData.comparisons[this.panel].tables[root.dataset.table]
    this.flagged = new Set(this.spec.flags.map(([row, column]) => `${row}.${column}`))
    this.limit = FIRST_ROWS
    this.shown = new Set((this.get("show") || "").split(",").filter(Boolean))
    this.build()
    this.update()
  }

  get(name) { return state.get(`${this.key}.${name}`) }

  set(name, value) {
    state.set(`${this.key}.${name}`, value)
    this.update()
  }

  get sort() {
    const match = /^(\d+)([ad])$/.exec(this.get("sort"))
    return match && Number(match[1]) < this.spec.columns.length ? {column: Number(match[1]), down: match[2] === "d"} : null
  }

  get order() {
    return this.spec.orders.find(order => order.key === this.get("order")) ?? this.spec.orders[0]
  }

  fold(row) { return this.spec.folds[row] ?? "shown" }

  build() {
    this.search = element("input", {type: "search", placeholder: "Filter rows", "aria-label": "Filter rows", value: this.get("find"),
      oninput: () => { this.limit = FIRST_ROWS; this.set("find", this.search.value) }})
    this.orders = this.spec.orders.map(order => element("button", {type: "button", onclick: () => {
      state.set(`${this.key}.sort`, "")
      this.set("order", order === this.spec.orders[0] ? "" : order.key)
    }}, order.label))
    this.folds = Object.keys(FOLDS).map(fold => ({fold, count: this.spec.rows.filter((_, row) => this.fold(row) === fold).length}))
      .filter(({count}) => count > 0)
      .map(({fold, count}) => ({fold, count, button: element("button", {type: "button", class: "fold", "data-fold": fold, onclick: () => this.toggle(fold)})}))
    this.heads = this.spec.columns.map((column, position) => this.head(column, position))
    this.body = element("tbody")
    this.count = element("span", {class: "count", role: "status"})
    this.more = element("button", {type: "button", class: "rows", onclick: () => { this.limit += MORE_ROWS; this.update() }})
    const tools = element("div", {class: "tools"}, this.search)
    if (this.orders.length > 1) tools.append(element("span", {class: "segments", role: "group", "aria-label": "Order"}, ...this.orders))
    tools.append(...this.folds.map(({button}) => button), this.count)
    const grid = element("table", {}, element("thead", {}, element("tr", {}, ...this.heads)), this.body)
    if (this.spec.rows.length > 8) this.root.append(tools)
    else if (this.folds.length || this.orders.length > 1) { this.search.hidden = true; this.root.append(tools) }
    this.root.append(element("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Table"}, grid), this.more, this.legend())
  }

  head(column, position) {
    const [arrow, words] = DIRECTIONS[column.good] ?? ["", ""]
    const button = element("button", {type: "button", title: [column.help, words].filter(Boolean).join(" "), onclick: () => this.nextSort(position)},
      column.title, element("span", {class: "sorted", "aria-hidden": "true"}))
    const below = [column.unit, arrow].filter(Boolean).join(" ")
    return element("th", {scope: "col", class: column.is_number ? "number" : ""}, button, ...(below ? [element("small", {}, below)] : []))
  }

  legend() {
    const items = this.spec.columns.flatMap(column => {
      const words = [column.help, (DIRECTIONS[column.good] ?? ["", ""])[1], column.limit === undefined ? "" : `flagged ${column.good === "up" ? "below" : "above"} ${column.limit}`]
      return [element("dt", {}, column.unit ? `${column.title} (${column.unit})` : column.title), element("dd", {}, words.filter(Boolean).join("; "))]
    })
    return element("details", {class: "legend"}, element("summary", {}, "What the columns mean"), element("dl", {}, ...items))
  }

  // The worst end first, then the other end, then the order of the table again.
  nextSort(position) {
    const down = this.spec.columns[position].good === "down"
    const steps = [`${position}${down ? "d" : "a"}`, `${position}${down ? "a" : "d"}`, ""]
    this.set("sort", steps[(steps.indexOf(this.get("sort")) + 1) % 3])
  }

  toggle(fold) {
    if (!this.shown.delete(fold)) this.shown.add(fold)
    this.set("show", [...this.shown].join(","))
  }

  visible() {
    const text = this.get("find").toLowerCase()
    const rows = this.order?.rows ?? this.spec.rows.map((_, row) => row)
    const kept = rows.filter(row => (this.fold(row) === "shown" || this.shown.has(this.fold(row)) || text)
      && (!text || this.spec.rows[row].some(cell => cellText(cell).toLowerCase().includes(text))))
    const sort = this.sort
    return sort ? kept.sort((first, second) => this.compare(first, second, sort)) : kept
  }

  // Missing values come last in both directions, and NaN before all numbers.
  compare(first, second, {column, down}) {
    const cells = [this.spec.rows[first][column], this.spec.rows[second][column]]
    const missing = isMissing(cells[0]) - isMissing(cells[1])
    if (missing || isMissing(cells[0])) return missing
    const texts = cells.map(cellText)
    const sign = down ? -1 : 1
    if (!this.spec.columns[column].is_number) return sign * texts[0].localeCompare(texts[1])
    const numbers = texts.map(text => Number(text.replace("inf", "Infinity")))
    const broken = Number.isNaN(numbers[1]) - Number.isNaN(numbers[0])
    return broken || (numbers[0] === numbers[1] ? 0 : sign * (numbers[0] < numbers[1] ? -1 : 1))
  }

  update() {
    const rows = this.visible()
    const few = rows.slice(0, this.limit)
    this.body.replaceChildren(...few.map(row => this.row(row)))
    if (!rows.length) this.body.append(element("tr", {}, element("td", {colspan: this.spec.columns.length, class: "none"},
      this.get("find") ? "No row matches the filter." : "No row needs work; the others are folded.")))
    this.more.hidden = few.length === rows.length
    this.more.textContent = `Show ${Math.min(MORE_ROWS, rows.length - few.length)} more of ${rows.length - few.length}`
    this.count.textContent = `${rows.length} of ${this.spec.rows.length} rows`
    this.orders.forEach((button, position) => button.setAttribute("aria-pressed", !this.sort && this.spec.orders[position] === this.order))
    for (const {fold, count, button} of this.folds) {
      button.textContent = `${this.shown.has(fold) ? "Hide" : "Show"} ${FOLDS[fold](count)}`
      button.setAttribute("aria-expanded", this.shown.has(fold))
    }
    this.heads.forEach((head, position) => {
      const sort = this.sort
      if (sort && sort.column === position) head.setAttribute("aria-sort", sort.down ? "descending" : "ascending")
      else head.removeAttribute("aria-sort")
    })
  }

  row(row) {
    const op = this.spec.ops[row] ?? -1
    const values = this.spec.rows[row]
    const cells = values.flatMap((cell, position) => {
      // One reason for several values in a row is said once.
      if (isMissing(cell) && values[position - 1] === cell) return []
      const span = isMissing(cell) ? values.findIndex((other, at) => at > position && other !== cell) : position + 1
      const colspan = (span < 0 ? values.length : span) - position
      const column = this.spec.columns[position]
      const flagged = this.flagged.has(`${row}.${position}`)
      const names = [column.is_number && "number", flagged && "flagged", column.is_op && "op"].filter(Boolean).join(" ")
      const text = isMissing(cell) ? missingMark(cellText(cell)) : cellText(cell)
      const content = column.is_op && op >= 0 ? element("a", {href: `#${state.section};op=${this.panel}.${op}`, "data-op": `${this.panel}.${op}`}, text) : text
      return element("td", {class: colspan > 1 ? "spanned" : names, colspan: colspan > 1 ? colspan : undefined, title: flagged ? this.reason(column) : undefined}, content)
    })
    return element("tr", {"data-row": row, class: this.fold(row)}, ...cells)
  }

  reason(column) {
    return column.limit === undefined ? "look at this value" : `${column.good === "up" ? "below" : "above"} the limit of ${column.limit}`
  }

  // Makes a row visible whatever is folded or filtered, and marks it.
  reveal(row) {
    const fold = this.fold(row)
    if (fold !== "shown" && !this.shown.has(fold)) this.toggle(fold)
    if (!this.visible().includes(row)) { this.search.value = ""; this.set("find", "") }
    this.limit = Math.max(this.limit, this.visible().indexOf(row) + 10)
    this.update()
    this.mark(row)?.scrollIntoView({block: "center"})
  }

  mark(row) {
    this.body.querySelectorAll(".marked").forEach(item => item.classList.remove("marked"))
    const found = this.body.querySelector(`tr[data-row="${row}"]`)
    found?.classList.add("marked")
    return found
  }
}
