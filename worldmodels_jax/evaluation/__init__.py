"""Returns of whole episodes, score statistics, open-loop prediction."""
