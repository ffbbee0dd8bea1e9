"""Model cards: data about published and house models, free of heavy imports."""
