// Ties the page together: panels, pictures drawn when they come near, links to ops, the copy buttons, the hash.
const page = {
  tables: new Map(),
  figures: new Set(),

  table(panel, name) {
    const root = document.querySelector(`.table[data-panel="${panel}"][data-table="${name}"]`)
    const key = `${panel}.${name}`
    if (root && !this.tables.has(key)) this.tables.set(key, new Table(root))
    return this.tables.get(key)
  },

  draw(panel) {
    const script = document.querySelector(`script[data-figure="${panel}"]`)
    if (!script || this.figures.has(panel)) return
    this.figures.add(panel)
    Bokeh.embed.embed_item(JSON.parse(script.textContent), document.querySelector(`.figure[data-panel="${panel}"]`))
  },

  showPanel(panel) {
    if (!(panel in pageData.comparisons)) return
    document.querySelectorAll(".comparison").forEach(item => { item.hidden = item.dataset.panel !== panel })
    document.querySelectorAll(".nav-group").forEach(item => item.classList.toggle("current", item.dataset.panel === panel))
    document.querySelectorAll("[role=tab]").forEach(tab => {
      const current = tab.dataset.panel === panel
      tab.setAttribute("aria-selected", current)
      tab.tabIndex = current ? 0 : -1
    })
    this.panel = panel
    document.querySelectorAll(`.table[data-panel="${panel}"]`).forEach(root => this.table(panel, root.dataset.table))
    document.querySelectorAll(`.figure[data-panel="${panel}"]`).forEach(root => lazy.observe(root))
  },

  openOp(panel, row, scroll) {
    if (!pageData.comparisons[panel]?.tables.similarity.rows[row]) return
    if (this.panel !== panel) this.showPanel(panel)
    const table = this.table(panel, "similarity")
    if (scroll) table?.reveal(row)
    else table?.mark(row)
    opView.open(panel, row)
  },

  // Goes to what the hash says: a section (which may lie in the other panel) and an op.
  follow(scroll) {
    state.read()
    const target = state.section ? document.getElementById(state.section) : null
    const panel = target?.closest(".comparison")?.dataset.panel
    this.showPanel(panel || state.get("panel") || this.panel || Object.keys(pageData.comparisons)[0])
    for (let item = target; item; item = item.parentElement) if (item.tagName === "DETAILS") item.open = true
    if (scroll) target?.scrollIntoView()
    const op = /^(.+)\.(\d+)$/.exec(state.get("op"))
    if (op) this.openOp(op[1], Number(op[2]), scroll)
    else opView.close()
  },
}

const lazy = new IntersectionObserver(entries => {
  for (const {isIntersecting, target} of entries) {
    if (!isIntersecting) continue
    lazy.unobserve(target)
    page.draw(target.dataset.panel)
  }
}, {rootMargin: "600px"})

document.addEventListener("click", event => {
  const link = event.target.closest("a[href^='#']")
  if (link && !event.ctrlKey && !event.metaKey) return followLink(event, link)
  const tab = event.target.closest("[role=tab]")
  if (tab) selectTab(tab)
  const copy = event.target.closest("button.copy")
  if (copy) copyCode(copy)
})

// A link changes the section or the op and keeps the rest of the state.
function followLink(event, link) {
  event.preventDefault()
  if (link.dataset.op) {
    const [panel, row] = link.dataset.op.split(/\.(?=\d+$)/)
    return page.openOp(panel, Number(row), false)
  }
  const [section, ...pairs] = link.getAttribute("href").slice(1).split(";")
  state.values.delete("op")
  for (const pair of pairs) state.values.set(...pair.split("=").map(decode))
  state.section = section
  history.pushState(null, "", "#" + [section, ...[...state.values].map(([key, value]) => `${key}=${encodeURIComponent(value)}`)].join(";"))
  page.follow(true)
}

function selectTab(tab) {
  const first = Object.keys(pageData.comparisons)[0]
  state.section = ""
  state.set("panel", tab.dataset.panel === first ? "" : tab.dataset.panel)
  opView.close()
  page.showPanel(tab.dataset.panel)
}

async function copyCode(button) {
  const code = button.parentElement.querySelector("pre")
  try {
    await navigator.clipboard.writeText(code.textContent)
    button.textContent = "Copied"
  } catch {
    getSelection().selectAllChildren(code)
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected"
  }
  setTimeout(() => { button.textContent = "Copy" }, 1500)
}

document.addEventListener("keydown", event => {
  const tab = event.target.closest?.("[role=tab]")
  if (event.key === "Escape") opView.close()
  else if (tab && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    const tabs = [...tab.parentElement.children]
    const next = tabs[(tabs.indexOf(tab) + (event.key === "ArrowRight" ? 1 : -1) + tabs.length) % tabs.length]
    next.focus()
    selectTab(next)
  }
})
document.addEventListener("op-picked", event => page.openOp(page.panel, event.detail, true))
window.addEventListener("hashchange", () => page.follow(true))
window.addEventListener("popstate", () => page.follow(true))
window.addEventListener("beforeprint", () => {
  document.querySelectorAll(".finding").forEach(item => { item.open = true })
  page.draw(page.panel)
})

page.follow(true)
document.body.classList.add("ready")
