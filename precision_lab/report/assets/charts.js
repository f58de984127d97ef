// Charts in the colours of the page: curves of variants, and a map of cells. Texts of a run are text, never markup.
"use strict";
(() => {
  const RAMP = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"]; // viridis

  // a chart that follows the size of its element and the theme; draw() returns the options
  lab.chart = (element, draw) => {
    const chart = echarts.init(element, null, { renderer: "canvas" });
    const update = () => {
      const ink = lab.theme.colour("ink");
      chart.setOption({
        animation: false,
        backgroundColor: "transparent",
        textStyle: { color: ink, fontFamily: "system-ui, sans-serif", fontSize: 12 },
        ...draw({ ink, rule: lab.theme.colour("rule"), muted: lab.theme.colour("muted") }),
      }, true);
    };
    new ResizeObserver(() => chart.resize()).observe(element);
    lab.theme.watch(update);
    return { chart, update };
  };

  // an axis in the colours of the theme
  const axis = ({ ink, rule, muted }, name, rest) => ({
    name,
    nameLocation: "middle",
    nameTextStyle: { color: ink },
    axisLabel: { color: ink, hideOverlap: rest.type !== "category", ...rest.axisLabel }, // of categories every nth is there
    axisLine: { lineStyle: { color: muted } },
    splitLine: { show: rest.type !== "category", lineStyle: { color: rule } },
    ...Object.fromEntries(Object.entries(rest).filter(([key]) => key !== "axisLabel")),
  });

  // lines of text for a tooltip
  lab.lines = (...texts) => lab.element("div", {}, ...texts.map((text) => lab.element("div", {}, text)));

  const tooltip = (formatter, trigger) => ({
    trigger,
    confine: true,
    transitionDuration: 0,
    backgroundColor: lab.theme.colour("paper"),
    borderColor: lab.theme.colour("muted"),
    textStyle: { color: lab.theme.colour("ink"), fontSize: 12 },
    formatter,
  });

  // A curve for each variant. x: the numbers along the axis; curves: {name, colour, dashes, broad, values}; a value is a
  // number, null, or the word for what is not finite, which is a cross at the top.
  lab.curves = (colours, { x, xName, yName, isLog, curves, lost }) => {
    const numbers = curves.flatMap(({ values }) => values.filter((value) => typeof value === "number" && (!isLog || value > 0)));
    const top = numbers.length ? Math.max(...numbers) : 1;
    const drawn = (value) => (typeof value === "number" && (!isLog || value > 0) ? value : null);
    return {
      grid: { left: 70, right: 16, top: 20, bottom: 44 },
      tooltip: tooltip((points) => lab.lines(
        `${xName} ${x[points[0].dataIndex]}`,
        ...curves.map(({ name, values }) => {
          const value = values[points[0].dataIndex];
          return `${name}: ${value === lost ? "not finite" : lab.number(value)}`;
        }),
      ), "axis"),
      xAxis: axis(colours, xName, { type: "category", data: x, nameGap: 26 }),
      yAxis: axis(colours, yName, { type: isLog ? "log" : "value", nameGap: 52, scale: true, axisLabel: { formatter: (value) => lab.number(value, isLog ? 1 : 3) } }),
      series: curves.map((curve) => ({ ...curve, colour: lab.theme.shade(curve.colour) })).flatMap(({ name, colour, dashes, broad, values }) => [
        {
          name, type: "line", data: values.map(drawn), showSymbol: x.length < 2 || values.filter((v) => v !== null).length < 2,
          symbolSize: 6, itemStyle: { color: colour },
          lineStyle: { color: colour, width: broad ? 3 : 2, type: broad ? "dashed" : dashes.length ? dashes.map((length) => 2 * length) : "solid" },
        },
        {
          name: `${name}, not finite`, type: "scatter", symbol: "path://M0,0L10,10M10,0L0,10", symbolSize: 9,
          data: values.map((value) => (value === lost ? top : null)), itemStyle: { color: "none", borderColor: colour, borderWidth: 2 },
        },
      ]),
    };
  };

  // Cells over two axes. cells: {x, y, value, text} with indices; column: the index that is framed; at: the cell under the keys.
  lab.map = (colours, { x, y, xName, yName, name, isLog, cells, lost, column, at }) => {
    const shade = (value) => (isLog ? Math.log10(value) : value);
    const finite = cells.filter(({ value }) => typeof value === "number" && (!isLog || value > 0));
    const shades = finite.map(({ value }) => shade(value));
    const low = shades.length ? Math.min(...shades) : 0;
    const high = shades.length ? Math.max(...shades) : 1;
    const words = (value) => lab.number(isLog ? 10 ** value : value);
    return {
      grid: { left: 52, right: 16, top: 12, bottom: 96 },
      tooltip: tooltip(({ data }) => lab.lines(...(data?.text ?? [])), "item"),
      xAxis: axis(colours, xName, { type: "category", data: x, nameGap: 26 }),
      yAxis: axis(colours, yName, { type: "category", data: y, inverse: true, nameGap: 32 }),
      visualMap: {
        type: "continuous", min: low, max: high > low ? high : low + 1, dimension: 2, seriesIndex: 0, orient: "horizontal",
        left: "center", bottom: 4, itemHeight: 160, itemWidth: 12, textStyle: { color: colours.ink }, text: [shades.length ? `${words(high)}  ${name}` : "", shades.length ? words(low) : ""],
        inRange: { color: RAMP }, calculable: false,
      },
      series: [
        {
          type: "heatmap", progressive: 0,
          data: finite.map((cell) => ({
            value: [cell.x, cell.y, shade(cell.value)], text: cell.text, cell,
            itemStyle: cell.x === at?.x && cell.y === at?.y ? { borderColor: colours.ink, borderWidth: 3 }
              : cell.x === column ? { borderColor: colours.ink, borderWidth: 1 } : {},
          })),
          emphasis: { itemStyle: { borderColor: colours.ink, borderWidth: 2 } },
        },
        {
          type: "scatter", symbol: "path://M0,0L10,10M10,0L0,10", symbolSize: 8,
          data: cells.filter(({ value }) => value === lost).map((cell) => ({ value: [cell.x, cell.y], text: cell.text, cell })),
          itemStyle: { color: "none", borderColor: lab.theme.colour("bad"), borderWidth: 2 },
        },
        {
          type: "scatter", symbol: "circle", symbolSize: 4,
          data: cells.filter(({ value }) => value === 0 && isLog).map((cell) => ({ value: [cell.x, cell.y], text: cell.text, cell })),
          itemStyle: { color: colours.muted },
        },
      ],
    };
  };
})();
