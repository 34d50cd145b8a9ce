// The page's state lives in the URL: #section;key=value;key=value
"use strict"
const pageData = JSON.parse(document.getElementById("page-data").textContent)

const state = {
  section: "",
  values: new Map(),

  read() {
    const [section, ...pairs] = location.hash.slice(1).split(";")
    this.section = decode(section)
    this.values = new Map(pairs.filter(pair => pair.includes("=")).map(pair => {
      const at = pair.indexOf("=")
      return [decode(pair.slice(0, at)), decode(pair.slice(at + 1))]
    }))
  },

  get(key) { return this.values.get(key) ?? "" },

  set(key, value) {
    if (value) this.values.set(key, String(value))
    else this.values.delete(key)
    const pairs = [...this.values].map(([name, item]) => `${name}=${encodeURIComponent(item)}`)
    history.replaceState(null, "", "#" + [this.section, ...pairs].join(";"))
  },
}

function decode(text) {
  try { return decodeURIComponent(text) } catch { return text }
}

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value)
    else if (value === true) node.setAttribute(name, "")
    else if (value !== false && value !== undefined) node.setAttribute(name, value)
  }
  node.append(...children)
  return node
}

// A cell is its text, or a position in the shared texts; a negative one is the reason for a missing value.
const isMissing = cell => typeof cell === "number" && cell < 0
const cellText = cell => typeof cell === "string" ? cell : pageData.texts[cell < 0 ? -1 - cell : cell]
const missingMark = reason => element("span", {class: "missing"}, reason)

state.read()
