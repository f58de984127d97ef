// The parts of Apache ECharts that the pages draw with; VENDORED.md says how they are put into one file.
export { init, use, format } from "echarts/core";
import { use } from "echarts/core";
import { HeatmapChart, LineChart, ScatterChart } from "echarts/charts";
import {
  AriaComponent, DataZoomComponent, GridComponent, LegendComponent, MarkAreaComponent, MarkLineComponent,
  TooltipComponent, VisualMapComponent,
} from "echarts/components";
import { CanvasRenderer } from "echarts/renderers";

use([
  AriaComponent, CanvasRenderer, DataZoomComponent, GridComponent, HeatmapChart, LegendComponent, LineChart,
  MarkAreaComponent, MarkLineComponent, ScatterChart, TooltipComponent, VisualMapComponent,
]);
