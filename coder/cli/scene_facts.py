"""What the commands `info` and `verify` say of a scene (`coder.scenes`)."""

from typing import Any

import zarr

from coder.archive import zarr_nodes
from coder.errors import CodecError
from coder.scenes import scene_layout


def changes(group: zarr.Group, arrays: dict[str, zarr.Array]) -> dict[str, str]:
    """Keys of shards that are not those that were finished, and why; reads all bytes."""
    found = {}
    for path, array in arrays.items():
        for place, why in scene_layout.changed(group, path):
            found[zarr_nodes.key(array, place)] = why
    return found


def described(group: zarr.Group, is_whole: bool) -> dict[str, Any]:
    """Print where a scene lies and how it was made; the facts of it."""
    state = scene_layout.state_of(group) or {}
    try:
        grid = scene_layout.grid_of(group)
    except CodecError as error:
        print(f"scene: its place cannot be read: {error.args[0]}")
        return {"scene": None}
    height, width = grid.shape
    west, south, east, north = grid.bounds
    a, e = grid.transform[0], grid.transform[4]
    done = "complete" if is_whole else "not whole"
    if state.get("state") == "writing":
        done = "still being written, or its writer was stopped: run `nec encode` again"
    print(
        f"scene: {height:,} x {width:,} cells of {a:g} x {-e:g} map units in "
        f"{grid.code or 'a system without a code'}; {done}"
    )
    print(f"  west {west:.10g}, south {south:.10g}, east {east:.10g}, north {north:.10g}")
    times = [str(step["time"]) for step in state.get("steps", []) if step.get("time")]
    if times:
        print(f"  times: {', '.join(times[:5])}" + (", .." if len(times) > 5 else ""))
    if times and "begun" in state:
        print(f"  one more, {state['begun'].get('time')}, was begun, and is not complete")
    made: Any = state.get("made", {})
    name = group.attrs.get("model_name")
    if name is not None:
        print(
            f"  made by {name} (SHA-256 {str(group.attrs.get('model_sha256'))[:8]} of its file), "
            f"quality {made.get('quality')}, from windows of {made.get('side')} x "
            f"{made.get('side')} cells, halo {made.get('halo')}; "
            f"{group.attrs.get('written_by')}"
        )
    facts: dict[str, Any] = {"shape": grid.shape, "bounds": grid.bounds, "crs": grid.code}
    facts |= {"transform": grid.transform, "times": times, "made": made}
    return {"scene": facts | {"state": done, "model_name": name}}
