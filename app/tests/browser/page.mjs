// Drives a real Chromium for app/tests/page.rs: one command as JSON on each line of standard input, one answer on each line of standard output.
import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

// Where scripts/servers.sh has put what package.json names.
const installed = createRequire(`${process.argv[2]}/package.json`);
const { chromium } = installed("playwright-core");
const axe = readFileSync(installed.resolve("axe-core/axe.min.js"), "utf8");

const browser = await chromium.launch({
  executablePath: process.argv[3],
  args: [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
  ],
});

let page;
const base = process.argv[4];
const complaints = [];
const elsewhere = [];

const commands = {
  // A window of its own, with what the one before was logged in with.
  async window({ width, height, scheme, scale, script }) {
    const state = page ? await page.context().storageState() : undefined;
    if (page) await page.context().close();
    const context = await browser.newContext({
      viewport: { width, height }, colorScheme: scheme, deviceScaleFactor: scale ?? 1, isMobile: width < 500, hasTouch: width < 500,
      reducedMotion: "reduce", storageState: state, baseURL: base, javaScriptEnabled: script ?? true, locale: "en-GB", timezoneId: "UTC",
    });
    page = await context.newPage();
    page.setDefaultTimeout(60000);
    page.on("console", (message) => { if (["error", "warning"].includes(message.type())) complaints.push(message.text()); });
    page.on("pageerror", (error) => complaints.push(String(error)));
    context.on("request", (request) => { if (!request.url().startsWith(`${base}/`)) elsewhere.push(request.url()); });
  },
  async open({ path }) { return (await page.goto(path, { waitUntil: "load" })).status(); },
  async fill({ at, text }) { await page.fill(at, text); },
  async click({ at }) { await page.click(at); },
  async press({ key }) { await page.keyboard.press(key); },
  async focused() { return page.evaluate(() => document.activeElement?.textContent?.trim() ?? ""); },
  async text({ at }) { return page.locator(at).first().innerText(); },
  async count({ at }) { return page.locator(at).count(); },
  async visible({ at }) { return page.locator(at).first().isVisible(); },
  async path() { return new URL(page.url()).pathname; },
  async until({ at, text }) { await page.locator(at).filter({ hasText: text }).first().waitFor(); },
  // The page's clock, from the next page on, is ours.
  async watch() { await page.clock.install(); },
  async pass({ ms }) { await page.clock.fastForward(ms); },
  async title() { return page.title(); },
  async cookies() { return page.context().cookies(); },
  // What is wider than the window makes a phone scroll sideways.
  async overflow() { return page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth); },
  async shot({ file, whole }) { await page.screenshot({ path: file, fullPage: whole ?? false }); },
  async axe() {
    // The page's own rules would refuse it as a script: it runs beside them.
    const found = await page.evaluate(`${axe}; axe.run(document, { resultTypes: ["violations"] })`);
    return found.violations.map(({ id, impact, help, nodes }) => ({ id, impact, help, nodes: nodes.map((node) => `${node.target} ${node.failureSummary}`) }));
  },
  async complaints() { return complaints.splice(0); },
  async elsewhere() { return elsewhere.splice(0); },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { does, ...given } = JSON.parse(line);
  let answer;
  try {
    answer = { done: (await commands[does](given)) ?? null };
  } catch (error) {
    answer = { failed: String(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
