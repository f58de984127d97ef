// The values of sites as the page holds them, and what follows from them: headroom from amax.
"use strict";
(() => {
  lab.siteValues = (data) => {
    const sites = data.sites.address.length;
    const formats = Object.keys(data.formats);
    const measures = { ...data.measures };
    if (measures.amax) {
      for (const format of formats) {
        measures[`headroom ${format}`] = {
          title: `headroom in ${format}`,
          meaning: `log2(${format} max / amax) in bits at the greatest amax; higher is better, negative is beyond the format`,
        };
      }
    }
    // `headroom float16` of amax; other measures as they are
    const derived = (measure, value) => {
      if (!measure.startsWith("headroom ") || typeof value !== "number") return value ?? null;
      return value > 0 ? Math.log2(data.formats[measure.slice(9)] / value) : null;
    };
    const base = (measure) => (measure.startsWith("headroom ") ? "amax" : measure);
    const isHeadroom = (measure) => measure.startsWith("headroom ");

    const values = {
      data,
      sites,
      measures,
      isHeadroom,
      isLog: (measure) => !isHeadroom(measure),
      // a site over the steps; null where it is not on the page
      history: (measure, variant, branch, site) => {
        const found = data.history[base(measure)][variant][branch]?.[site];
        return found ? found.map((value) => derived(measure, value)) : null;
      },
      // the first step, as an index, in which one of these sites is not finite; infinite if none is
      failure: (measure, variant, branch, outputs) => Math.min(...outputs.map((site) => {
        const at = (data.history[base(measure)][variant][branch]?.[site] ?? []).indexOf(data.lost);
        return at < 0 ? Infinity : at;
      })),
      // The worst value of a site over the steps up to `last`, of one branch. Later steps start from a state that is lost.
      worst: (measure, variant, branch, site, last) => {
        const found = values.history(measure, variant, branch, site)?.filter((_, at) => at <= last);
        if (!found) return null;
        if (found.includes(data.lost)) return data.lost;
        const numbers = found.filter((value) => value !== null);
        if (!numbers.length) return null;
        return isHeadroom(measure) ? Math.min(...numbers) : Math.max(...numbers);
      },
      // the worst finite value of a site over everything
      summary: (measure, variant, site) => derived(measure, data.summary[base(measure)]?.[variant][site]),
      lostAt: (variant, site) => data.lost_at[variant]?.[site],
      // block outputs of a stream, in the order of the blocks
      outputs: (stream) =>
        Array.from({ length: sites }, (_, site) => site)
          .filter((site) => data.sites.output[site] === stream)
          .sort((a, b) => data.sites.block[a] - data.sites.block[b]),
      text: (value) => (value === data.lost ? "not finite" : value === null ? "not measured" : lab.number(value)),
    };
    return values;
  };
})();
