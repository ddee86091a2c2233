// What a browser knows of a page that can be read: called by tests, each returns a list of what is wrong.

// Pixels by which the page is wider than the window.
const overflow = () => document.documentElement.scrollWidth - document.documentElement.clientWidth;

// Tables of which a part can only be reached with a scroll bar.
const cutTables = () => [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)
  .map(e => `${e.innerText.slice(0, 40)}: ${e.scrollWidth} of ${e.clientWidth}`);

// Pairs of texts that lie over each other.
const overlaps = () => {
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, range = document.createRange();
    if (!node.data.trim() || node.parentElement.closest('title, style, script')) continue;
    if (!node.parentElement.checkVisibility({contentVisibilityAuto: true, visibilityProperty: true})) continue;
    range.selectNodeContents(node);
    for (const r of range.getClientRects()) if (r.width > 1) found.push({node, r, text: node.data.trim().slice(0, 30)});
  }
  found.sort((a, b) => a.r.top - b.r.top);
  const over = [];
  for (let i = 0; i < found.length; i++) for (let j = i + 1; j < found.length; j++) {
    const a = found[i], b = found[j];
    if (b.r.top >= a.r.bottom) break;
    const high = Math.min(a.r.bottom, b.r.bottom) - b.r.top;
    const wide = Math.min(a.r.right, b.r.right) - Math.max(a.r.left, b.r.left);
    const much = high > 0.35 * Math.min(a.r.height, b.r.height);
    if (a.node !== b.node && wide > 2 && much) over.push(`${a.text} | ${b.text}`);
  }
  return over;
};

// Texts of drawings that leave their drawing; those of plots, which have margins in the page, the page.
const cutTexts = () => [...document.querySelectorAll('svg text')].filter(text => {
  const r = text.getBoundingClientRect(), s = text.ownerSVGElement.getBoundingClientRect();
  if (text.closest('.plot')) return r.left < 0 || r.right > document.documentElement.clientWidth;
  return r.left < s.left - 1 || r.right > s.right + 1 || r.top < s.top - 1 || r.bottom > s.bottom + 1;
}).map(text => text.textContent);

// Links within the page that lead nowhere, or to two places.
const deadLinks = () => [...document.querySelectorAll('a[href^="#"]')].map(a => a.getAttribute('href').slice(1))
  .filter(id => document.querySelectorAll(`[id="${id}"]`).length !== 1);

// The contrast (WCAG 2) of the first element of each selector with what it lies on, where it is below 4.5.
const faint = selectors => {
  const part = v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = colour => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map(Number).map(part);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = e => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\)$/.test(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  return selectors.map(name => {
    const e = document.querySelector(name);
    if (!e) return [name, 'is not there'];
    const [high, low] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    return [name, (high + 0.05) / (low + 0.05)];
  }).filter(([, ratio]) => !(ratio >= 4.5));
};
